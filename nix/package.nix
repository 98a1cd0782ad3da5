{
  lib,
  python3Packages,
  sudo,
  tmux,
}:

python3Packages.buildPythonApplication {
  pname = "agentd";
  version =
    let
      line =
        lib.findFirst (lib.hasPrefix "__version__ = ") (throw "agentd/__init__.py has no __version__")
          (lib.splitString "\n" (builtins.readFile ../agentd/__init__.py));
    in
    lib.head (builtins.match ''__version__ = "(.*)"'' line);
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      (lib.fileset.fileFilter (file: !file.hasExt "pyc") ../agentd)
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
    "--suffix"
    "PATH"
    ":"
    (lib.makeBinPath [
      tmux
      sudo
    ])
  ];

  # The suite wants real tmux, users and /proc: it is run elsewhere, and nix/tests/ runs this package on a machine.
  doCheck = false;

  pythonImportsCheck = [
    "agentd"
    "agentd.cli"
    "agentd.ctl.commands"
    "agentd.daemon"
  ];

  meta = {
    description = "Runs AI coding agents, each in a tmux session that an admin can attach to";
    license = lib.licenses.mit;
    mainProgram = "agentd";
    platforms = lib.platforms.linux;
  };
}
