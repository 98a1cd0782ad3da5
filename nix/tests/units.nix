# The module as NixOS itself evaluates it: alone, with stereOS's overrides, with everything set, and each time that it
# must refuse. All of it is done when this is evaluated. `generated` is what systemd is given, for scripts/check_nix.
{
  lib,
  nixosSystem,
  stdenv,
  writeText,
}:
let
  evaluate =
    module:
    (nixosSystem {
      modules = [
        ../module.nix
        module
        {
          boot.isContainer = true;
          nixpkgs.hostPlatform = stdenv.hostPlatform.system;
          system.stateVersion = lib.trivial.release;
        }
      ];
    }).config;

  alone = evaluate { services.agentd.enable = true; };
  stereos = evaluate ./stereos.nix;
  everything = evaluate {
    services.agentd = {
      enable = true;
      extraArgs = [
        "-debug"
        "-secret-dir=/run/100% of $them"
      ];
      keepAgents = true;
      settings.agents = [ { harness = "claude-code"; } ];
      agentUser = "robot";
      adminGroup = "wheel";
    };
    users.users.robot.isNormalUser = true;
    systemd.services.agentd.serviceConfig.TimeoutStopSec = "10min";
  };
  disabled = evaluate { };

  refusals =
    module:
    map (refused: refused.message) (
      lib.filter (judged: !judged.assertion) (evaluate module).assertions
    );
  refused =
    services:
    lib.length (refusals {
      services.agentd = {
        enable = true;
      }
      // services;
    }) == 1;

  service = config: config.systemd.services.agentd.serviceConfig;

  # Each is a sentence, and whether it is true.
  facts = {
    "nothing is there without enable" =
      !(disabled.systemd.services ? agentd) && !(disabled.users.users ? agent);
    "a system builds with the module alone" = refusals { services.agentd.enable = true; } == [ ];
    "a system builds with stereOS's overrides" = refusals ./stereos.nix == [ ];
    "the sudo that can switch users comes first" =
      lib.hasPrefix "/run/wrappers/bin:" alone.systemd.services.agentd.environment.PATH;
    "tmux and sudo are on the path, and what stereOS adds" =
      lib.all (program: lib.hasInfix "-${program}-" stereos.systemd.services.agentd.environment.PATH)
        [
          "tmux"
          "sudo"
          "gvisor"
          "nix"
        ];
    "agentd is root" = !(service alone).DynamicUser && !((service alone) ? User);
    "agentd has no directory that systemd would delete" = !((service alone) ? RuntimeDirectory);
    "stereOS's delay is in force" = (service stereos).RestartSec == 5;
    "stereOS's order is in force, and ours" =
      lib.subtractLists stereos.systemd.services.agentd.after [
        "stereosd.service"
        "agentd-tmux.service"
      ] == [ ];
    "stereOS's shell stays, and its home" =
      lib.hasSuffix "/bin/bash" stereos.users.users.agent.shell
      && stereos.users.users.agent.home == "/home/agent";
    "the user agent has a group of its own" =
      alone.users.users.agent.group == "agent" && alone.users.users.agent.isNormalUser;
    "another agent user is not declared here" = !(everything.users.users ? agent);
    "another agent user has the tmux server" =
      everything.systemd.services.agentd-tmux.serviceConfig.User == "robot";
    "users and arguments reach agentd, whatever characters they have" =
      let
        words = ''"-agent-user" "robot" "-admin-group" "wheel" "-keep-agents" "-debug" "-secret-dir=/run/100%% of $$them"'';
      in
      lib.hasSuffix words (service everything).ExecStart;
    "a plain value wins over the unit's" = (service everything).TimeoutStopSec == "10min";
    "without settings the card is left to others" = !(alone.environment.etc ? "stereos/jcard.toml");
    "with settings it is written" = everything.environment.etc ? "stereos/jcard.toml";
    "a new version leaves the agents' server alone" =
      !alone.systemd.services.agentd-tmux.restartIfChanged;
    "flags that options set are refused" = lib.all (argument: refused { extraArgs = [ argument ]; }) [
      "-agent-user=x"
      "--admin-group"
      "-keep-agents=false"
      "-tmux-socket"
      "-tmux-unit=x.service"
    ];
    "two cards are refused" = refused {
      settings = { };
      extraArgs = [ "-config=/x" ];
    };
    "a system without sudo is refused" =
      lib.length (refusals {
        services.agentd.enable = true;
        security.sudo.enable = false;
      }) == 1;
    "DynamicUser is refused" =
      lib.length (refusals {
        services.agentd.enable = true;
        systemd.services.agentd.serviceConfig.DynamicUser = true;
      }) == 1;
  };
  untrue = lib.attrNames (lib.filterAttrs (_: isTrue: !isTrue) facts);

  texts =
    config:
    lib.genAttrs [
      "agentd.service"
      "agentd-tmux.service"
    ] (name: config.systemd.units.${name}.text)
    // lib.listToAttrs (
      map (package: lib.nameValuePair "agentd.conf" package.text) (
        lib.filter (package: lib.getName package == "agentd.conf") config.systemd.tmpfiles.packages
      )
    );

  # Whole systems, evaluated to the last and not built.
  systems =
    lib.mapAttrs (_: config: builtins.unsafeDiscardStringContext config.system.build.toplevel.drvPath)
      {
        inherit alone stereos everything;
      };

  generated = lib.mapAttrs (_: texts) { inherit alone stereos everything; };
in
assert lib.assertMsg (
  untrue == [ ]
) "Of the module it is not true that ${lib.concatStringsSep "; that " untrue}.";
writeText "agentd-units.json" (
  builtins.unsafeDiscardStringContext (builtins.toJSON { inherit generated systems; })
)
// {
  inherit generated;
}
