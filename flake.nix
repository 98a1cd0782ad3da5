{
  description = "agentd runs AI coding agents, each in a tmux session that an admin can attach to";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      forAll =
        make:
        lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
        ] (system: make nixpkgs.legacyPackages.${system});
    in
    {
      packages = forAll (pkgs: rec {
        default = agentd;
        agentd = pkgs.callPackage ./nix/package.nix { };
      });

      overlays.default = final: _: {
        agentd = final.callPackage ./nix/package.nix { };
      };

      nixosModules = rec {
        default = agentd;
        agentd = ./nix/module.nix;
      };

      devShells = forAll (pkgs: {
        default = pkgs.callPackage ./nix/shell.nix { };
      });

      checks = forAll (pkgs: {
        package = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        units = pkgs.callPackage ./nix/tests/units.nix { inherit (lib) nixosSystem; };
        machine = pkgs.testers.runNixOSTest ./nix/tests/machine.nix;
      });

      formatter = forAll (pkgs: pkgs.nixfmt-tree);
    };
}
