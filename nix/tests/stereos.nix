# What stereOS adds to the module: its daemon, its users, its overrides. All of it must fit without a conflict.
{ lib, pkgs, ... }:
{
  services.agentd.enable = true;

  systemd.services.stereosd = {
    wantedBy = [ "multi-user.target" ];
    serviceConfig.ExecStart = "${pkgs.coreutils}/bin/sleep infinity";
  };

  systemd.services.agentd = {
    after = [ "stereosd.service" ];
    requires = [ "stereosd.service" ];
    path = [
      pkgs.gvisor
      pkgs.nix
    ];
    serviceConfig = {
      DynamicUser = lib.mkForce false;
      Restart = lib.mkForce "on-failure";
      RestartSec = 5;
    };
  };

  systemd.tmpfiles.rules = [
    "d /run/stereos 0750 root admin -"
    "d /run/stereos/secrets 0700 root root -"
    "d /run/agentd 0750 agent admin -"
    "d /home/agent/workspace 0755 agent agent -"
  ];

  users.groups.agent = { };
  users.users.agent = {
    isNormalUser = true;
    group = "agent";
    home = "/home/agent";
    shell = "${pkgs.bashInteractive}/bin/bash";
    extraGroups = [ ];
  };
  users.groups.admin = { };
  users.users.admin = {
    isNormalUser = true;
    extraGroups = [
      "wheel"
      "admin"
    ];
  };
  security.sudo = {
    enable = true;
    wheelNeedsPassword = false;
    extraConfig = "agent ALL=(ALL:ALL) !ALL";
  };
}
