import os
import signal
import time

from tests.e2e.outside import World, halted, wait_for


def test_a_server_that_stands_still_for_a_minute(world: World) -> None:
    """For as long as the server is stopped, health answers and nobody is dead; afterwards all is as before.

    A minute, since a connection that is silent for 30 s is replaced: what was asked on it is asked again.
    """
    agents = [
        world.agent("stays", restart="always"),
        world.agent("ends", restart="always", restart_delay_max="50ms", env={"EXIT": "3"}),
        world.agent("gone", grace_period="500ms", env={"IGNORE": "INT"}),
    ]
    world.write_card(*agents)
    world.start()
    stays, ends, gone = (world.wait_ready(name) for name in ("stays", "ends", "gone"))
    with halted(world.server()):
        until = time.monotonic() + 61
        os.kill(ends.pid, signal.SIGINT)
        wait_for(lambda: world.status("ends").get("exit"), "the end", seconds=3)
        world.write_card(*agents[:2], world.agent("late"))
        world.look()
        world.wait_gone("gone", seconds=8)
        assert gone.left() == {}
        while time.monotonic() < until:
            began = time.monotonic()
            assert world.get("/v1/health").status == 200
            assert time.monotonic() - began < 2
            status = world.status("stays")
            assert (status["state"], status["pid"], status["restarts"]) == ("running", stays.pid, 0)
            time.sleep(0.5)  # how often somebody asks for its health
    world.wait_ready("late")
    world.wait_ready("ends", 2)
    assert (world.status("stays")["pid"], stays.events) == (stays.pid, [])
    assert [world.status(name)["restarts"] for name in ("ends", "late")] == [1, 0]
    wait_for(lambda: world.sessions() == ["ends", "late", "stays"], "the sessions")
