"""Serves models to many clients at once, over OpenAI's interface, and a page to chat with them.

    python scripts/serve_openai_api.py --weight full_sft
    python scripts/serve_openai_api.py --weight full_sft --models calls=full_sft+calls base=pretrain
    MINIMIND_API_KEY=... python scripts/serve_openai_api.py --weight full_sft --host 0.0.0.0

Then ask, with the client of your choice or with curl:

    curl http://127.0.0.1:8998/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"model": "full_sft", "messages": [{"role": "user", "content": "Who are you?"}]}'

The page is at the same address, http://127.0.0.1:8998. Only this machine can reach the server unless --host says
otherwise. Ctrl-C and SIGTERM let the answers under way end; a second Ctrl-C breaks them off.
"""

from minimind_sft.errors import run_program
from minimind_sft.serving.program import serve_models
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.serve import ServeSettings
from minimind_sft.terminal import say


def main() -> None:
    settings = parse_flags(ServeSettings, description=__doc__)
    serve_models(settings, ready=lambda address: say(
        f"open {address} in a browser; the interface for programs is at {address}/v1, Ctrl-C ends this"))


if __name__ == "__main__":
    run_program(main)
