# What `make lint` and `make test` use, without pip: an interpreter that has everything, tmux and sudo.
{
  mkShell,
  nixfmt,
  python3,
  ruff,
  sudo,
  tmux,
  zsh,
}:

mkShell {
  packages = [
    (python3.withPackages (
      packages: with packages; [
        attrs
        hatchling
        hypercorn
        hypothesis
        inotify-simple
        mypy
        pytest
        pytest-trio
        pytest-xdist
        quart-trio
        tomlkit
        trio
      ]
    ))
    nixfmt
    ruff
    tmux
    zsh
  ];

  # Not before PATH: on NixOS the sudo that can switch users is the system's wrapper.
  shellHook = ''
    export PATH=$PATH:${sudo}/bin PYTHONPATH=$PWD
  '';
}
