# A virtual machine that runs the module: root's agentd, the agents' user, an admin, a stranger.
{ pkgs, ... }:
let
  # An agent as a program of the store, since the agents' PATH is that of their login shell.
  program = name: text: "${pkgs.writeShellScript name text}";
in
{
  name = "agentd";

  nodes.machine = {
    imports = [ ../module.nix ];

    environment.systemPackages = [
      pkgs.curl
      pkgs.jq
    ];

    services.agentd = {
      enable = true;
      settings.agents = [
        {
          name = "steady";
          harness = "custom";
          binary = program "steady" "exec sleep infinity";
        }
        {
          name = "crashing";
          harness = "custom";
          binary = program "crashing" "exit 3";
          restart = "on-failure";
          max_restarts = 1;
        }
      ];
    };

    users.users.alice = {
      isNormalUser = true;
      extraGroups = [
        "admin"
        "wheel"
      ];
    };
    security.sudo.wheelNeedsPassword = false;
    users.users.mallory.isNormalUser = true;
  };

  testScript = ''
    import json

    SOCKET = "/run/stereos/agentd.sock"
    MAIN_PID = "systemctl show -p MainPID --value agentd.service"

    def ask(path: str, user: str = "root") -> dict:
        answer = machine.succeed(f"runuser -u {user} -- curl -sS --fail --unix-socket {SOCKET} http://localhost{path}")
        return json.loads(answer)

    def until(path: str, condition: str) -> dict:
        machine.wait_until_succeeds(
            f"curl -sS --fail --unix-socket {SOCKET} http://localhost{path} | jq -e '{condition}'", timeout=60
        )
        return ask(path)

    machine.wait_for_unit("agentd.service")

    with subtest("an agent runs as the agent user"):
        steady = until("/v1/agents/steady", ".running and .pid != null")
        assert machine.succeed(f"ps -o user= -p {steady['pid']}").strip() == "agent"

    with subtest("a crash is restarted, and told"):
        crashing = until("/v1/agents/crashing", '.state == "failed"')
        assert crashing["restarts"] == 1, crashing
        assert crashing["exit"]["code"] == 3, crashing

    with subtest("an admin may ask and attach, others may not"):
        assert len(ask("/v1/agents", user="alice")) == 2
        for sudo in ("", "sudo "):
            machine.succeed(f"runuser -u alice -- {sudo}tmux -S /run/agentd/tmux.sock has-session -t steady")
        machine.fail(f"runuser -u mallory -- curl -sS --fail --unix-socket {SOCKET} http://localhost/v1/agents")
        machine.fail("runuser -u mallory -- tmux -S /run/agentd/tmux.sock has-session -t steady")

    with subtest("a bad card leaves the last good one in force"):
        machine.succeed("cp --no-dereference /etc/stereos/jcard.toml /root/good.toml")
        machine.succeed("echo '[[agents' >/root/bad.toml && mv /root/bad.toml /etc/stereos/jcard.toml")
        machine.succeed("systemctl reload agentd.service")
        until("/v1/health", ".card_error != null")
        assert ask("/v1/agents/steady")["pid"] == steady["pid"]
        machine.succeed("mv /root/good.toml /etc/stereos/jcard.toml")
        until("/v1/health", ".card_error == null")

    with subtest("agents outlive a killed agentd, and are taken over"):
        before = machine.succeed(MAIN_PID).strip()
        machine.succeed("systemctl kill --signal=KILL --kill-whom=main agentd.service")
        machine.wait_until_succeeds(
            f"systemctl is-active agentd.service && test $({MAIN_PID}) != {before}", timeout=60
        )
        adopted = until("/v1/agents/steady", ".running")
        assert adopted["pid"] == steady["pid"], adopted

    with subtest("a stop leaves nothing"):
        machine.succeed("systemctl stop agentd.service")
        for unit in ("agentd.service", "agentd-tmux.service"):
            state = machine.succeed(f"systemctl show -p ActiveState --value {unit}").strip()
            assert state == "inactive", (unit, state)
        machine.fail("pgrep -u agent")
  '';
}
