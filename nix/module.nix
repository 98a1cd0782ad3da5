# services.agentd: agentd as root, its agents as an unprivileged user. The units are those of systemd/system/, and
# whatever they say is a default here.
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  inherit (lib) mkDefault mkOption types;

  cfg = config.services.agentd;
  toml = pkgs.formats.toml { };
  readUnit = import ./read-unit.nix lib;
  daemon = readUnit ../systemd/system/agentd.service;
  server = readUnit ../systemd/system/agentd-tmux.service;

  defaults = lib.mapAttrs (_: mkDefault);
  words =
    lines:
    lib.concatMap (line: lib.filter (word: word != "") (lib.splitString " " line)) (lib.toList lines);

  # The program of a unit's command line, found elsewhere; the arguments stay.
  replace =
    program: path: line:
    if lib.hasPrefix "${program} " line then
      path + lib.removePrefix program line
    else
      throw "nix/module.nix expects a command line that begins with ${program}, and found: ${line}";

  variables =
    unit:
    let
      read = line: {
        name = lib.head (lib.splitString "=" line);
        value = lib.concatStringsSep "=" (lib.tail (lib.splitString "=" line));
      };
    in
    # PATH is where NixOS has programs, from the option `path`.
    removeAttrs (lib.listToAttrs (map read (lib.toList (unit.Service.Environment or [ ])))) [ "PATH" ];

  service = unit: ours: {
    description = unit.Unit.Description;
    wants = words (unit.Unit.Wants or [ ]);
    after = words (unit.Unit.After or [ ]);
    unitConfig = defaults (
      removeAttrs unit.Unit [
        "Description"
        "Wants"
        "After"
      ]
    );
    environment = defaults (variables unit);
    serviceConfig = defaults (removeAttrs unit.Service [ "Environment" ] // ours);
  };

  flags = lib.concatMap (
    argument:
    let
      found = builtins.match "--?([a-z-]+)(=.*)?" argument;
    in
    lib.optional (found != null) (lib.head found)
  ) cfg.extraArgs;

  refuse = flag: advice: {
    assertion = !(lib.elem flag flags);
    message = "services.agentd.extraArgs has -${flag}: leave it out, and ${advice}.";
  };

  card = toml.generate "jcard.toml" cfg.settings;
  checkedCard = pkgs.runCommand "jcard.toml" { nativeBuildInputs = [ cfg.package ]; } ''
    agentctl check ${card}
    cp ${card} $out
  '';
in
{
  options.services.agentd = {
    enable = lib.mkEnableOption "agentd, which runs AI coding agents, each in a tmux session";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalMD "agentd of this flake, built with the system's packages";
      description = "The agentd package, which also has {command}`agentctl`.";
    };

    extraArgs = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "-debug" ];
      description = "More flags for agentd; {command}`agentd -h` tells them.";
    };

    keepAgents = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether the agents outlive a stop or a restart of {file}`agentd.service`, as an upgrade makes it: the next agentd
        takes them over. They end when the machine is shut down, or {file}`agentd-tmux.service` is stopped.
      '';
    };

    settings = mkOption {
      type = types.nullOr toml.type;
      default = null;
      example.agents = [
        {
          harness = "claude-code";
          prompt = "Make the tests pass, then stop.";
          restart = "on-failure";
        }
      ];
      description = ''
        The card, {file}`/etc/stereos/jcard.toml`, checked by {command}`agentctl check` when the system is built. With
        `null` it is somebody else's to write. Everybody can read it, and the store: what is secret belongs into
        {file}`/run/stereos/secrets`.
      '';
    };

    agentUser = mkOption {
      type = types.str;
      default = "agent";
      description = ''
        The user that agents run as. `agent` is declared here, as a normal user whose every property can be set
        otherwise; another one must be declared elsewhere.
      '';
    };

    adminGroup = mkOption {
      type = types.str;
      default = "admin";
      description = "The group whose members may attach to agents and ask agentd's API.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      (refuse "agent-user" "set services.agentd.agentUser")
      (refuse "admin-group" "set services.agentd.adminGroup")
      (refuse "keep-agents" "set services.agentd.keepAgents")
      (refuse "tmux-socket" "use /run/agentd/tmux.sock, where agentd-tmux.service has it")
      (refuse "tmux-unit" "override systemd.services.agentd-tmux, which is that unit")
      {
        assertion = cfg.settings == null || !(lib.elem "config" flags);
        message = "services.agentd has settings, and extraArgs has -config: leave one of them out.";
      }
      {
        assertion =
          cfg.agentUser == "root" || config.security.sudo.enable || config.security.sudo-rs.enable;
        message = "services.agentd runs its agents through sudo: set security.sudo.enable or security.sudo-rs.enable.";
      }
      {
        assertion = !config.systemd.services.agentd.serviceConfig.DynamicUser;
        message = "DynamicUser is true for agentd.service, which must be root to run agents: set it to false.";
      }
    ];

    environment.systemPackages = [
      cfg.package
      pkgs.tmux
    ];

    environment.etc = lib.mkIf (cfg.settings != null) {
      "stereos/jcard.toml".source =
        # A card for another machine is checked there, by agentd.
        if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then checkedCard else card;
    };

    users.groups.${cfg.adminGroup} = { };

    users.users = lib.mkIf (cfg.agentUser == "agent") {
      agent = {
        description = mkDefault "agentd's agents";
        isNormalUser = mkDefault true;
        # Stronger than a normal user's own default, `users`, and weaker than what a configuration says.
        group = lib.mkOverride 900 "agent";
      };
    };
    users.groups.agent = lib.mkIf (cfg.agentUser == "agent") { };

    # Not agentd's RuntimeDirectory=, which would be root's, and deleted at each stop.
    systemd.tmpfiles.settings.agentd = {
      "/run/agentd".d = {
        mode = mkDefault "0750";
        user = mkDefault cfg.agentUser;
        group = mkDefault cfg.adminGroup;
      };
      "/home/agent/workspace" = lib.mkIf (cfg.agentUser == "agent") {
        d = {
          mode = mkDefault "0755";
          user = mkDefault "agent";
          group = mkDefault config.users.users.agent.group;
        };
      };
    };

    systemd.services.agentd =
      service daemon {
        ExecStart = lib.concatStringsSep " " [
          (replace "/usr/local/bin/agentd" (lib.getExe cfg.package) daemon.Service.ExecStart)
          (utils.escapeSystemdExecArgs (
            [
              "-agent-user"
              cfg.agentUser
              "-admin-group"
              cfg.adminGroup
            ]
            ++ lib.optional cfg.keepAgents "-keep-agents"
            ++ cfg.extraArgs
          ))
        ];
        ExecReload = replace "kill" "${pkgs.coreutils}/bin/kill" daemon.Service.ExecReload;
        # agentd's interface was documented with true here. That would be an unprivileged user, who cannot run anything
        # as another one.
        DynamicUser = false;
      }
      // {
        wantedBy = [ "multi-user.target" ];
        path = lib.mkBefore [
          # Before the package: only this sudo can switch users.
          (dirOf config.security.wrapperDir)
          pkgs.tmux
          pkgs.sudo
        ];
      };

    systemd.services.agentd-tmux =
      service server {
        User = cfg.agentUser;
        ExecStart = replace "tmux" (lib.getExe pkgs.tmux) server.Service.ExecStart;
      }
      // {
        # The agents live in it: agentd ends it at its own stop, and has it started anew at its next start.
        restartIfChanged = mkDefault false;
        path = lib.mkBefore [
          (dirOf config.security.wrapperDir)
          "/run/current-system/sw"
        ];
      };
  };
}
