{
  lib,
  python3Packages,
  sudo,
  tmux,
}:

python3Packages.buildPythonApplication {
  pname = "agentd";
  version = "0.1.0";
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../agentd
      ../pyproject.toml
      ../README.md
      ../LICENSE
    ];
  };

  build-system = [ python3Packages.hatchling ];

  dependencies = with python3Packages; [
    attrs
    hypercorn
    inotify-simple
    quart-trio
    tomlkit
    trio
  ];

  # After PATH: on NixOS the sudo that can switch users is the system's wrapper, which must be found first.
  makeWrapperArgs = [
    "--suffix PATH : ${
      lib.makeBinPath [
        tmux
        sudo
      ]
    }"
  ];

  pythonImportsCheck = [ "agentd" ];

  meta = {
    description = "Runs AI coding agents, each in a tmux session that an admin can attach to";
    license = lib.licenses.mit;
    mainProgram = "agentd";
    platforms = lib.platforms.linux;
  };
}
