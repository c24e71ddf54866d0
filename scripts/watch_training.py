"""Shows runs in the browser while they train, from their metrics files.

    python scripts/watch_training.py out
    python scripts/watch_training.py out/a_256_metrics.jsonl out/b_256_metrics.jsonl --port 8700

The page is for this machine only and changes nothing. To watch a run on another machine, start this there and make a
tunnel to it: ssh -L 8642:127.0.0.1:8642 that-machine. Ctrl-C ends it; runs go on.
"""

from minimind_sft.errors import run_program
from minimind_sft.report.following import FollowedRuns
from minimind_sft.report.live import LiveServer
from minimind_sft.report.live_page import LivePage, live_policy
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.scripts import WatchSettings
from minimind_sft.terminal import say


def main() -> None:
    settings = parse_flags(WatchSettings, description=__doc__)
    with LiveServer(settings.port, LivePage(FollowedRuns(settings.metrics)), live_policy()) as server:
        say(f"open {server.address} in a browser of this machine; Ctrl-C ends this, runs go on")
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # the usual way to end it
            say("")


if __name__ == "__main__":
    run_program(main)
