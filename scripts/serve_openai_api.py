"""Serves models to many clients at once, over OpenAI's interface, and a page to chat with them.

    python scripts/serve_openai_api.py --weight full_sft
    python scripts/serve_openai_api.py --weight full_sft --models calls=full_sft+calls base=pretrain
    MINIMIND_API_KEY=... python scripts/serve_openai_api.py --weight full_sft --host 0.0.0.0

Then ask, with the client of your choice or with curl:

    curl http://127.0.0.1:8998/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"model": "full_sft", "messages": [{"role": "user", "content": "Who are you?"}]}'

The page is at the same address, http://127.0.0.1:8998. Only this machine can reach the server unless --host says
otherwise. Ctrl-C and SIGTERM let the answers under way end, and Ctrl-C twice does not.
"""

from importlib.util import find_spec

from minimind_sft.errors import UserError, run_program
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.serve import ListeningSettings, ServeSettings
from minimind_sft.terminal import say

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "llguidance")


def main() -> None:
    settings = parse_flags(ServeSettings, description=__doc__)
    require_packages()
    from minimind_sft.serving.application import make_application
    from minimind_sft.serving.models import load_models
    from minimind_sft.serving.server import listen, serve
    with listen(settings.listening) as listener:
        models = load_models(settings, say)
        for model in models:
            say(f"{'model':<12}{model.name}: {model.loaded.path}")
        if settings.listening.is_open and settings.listening.key is None:
            say(f"{'notice':<12}everybody who reaches {settings.listening.host} can use the models: there is no "
                "--api_key")
        app = make_application(models, settings.listening, settings.limits)
        opened = address(settings.listening, listener.getsockname()[1])
        serve(app, listener, settings.limits, ready=lambda: say(
            f"open {opened} in a browser; the interface for programs is at {opened}/v1, Ctrl-C ends this"))


def require_packages() -> None:
    """
    Raises:
        UserError: if a package is missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"the server needs {', '.join(missing)}: pip install 'minimind-sft[serve]'")


def address(listening: ListeningSettings, port: int) -> str:
    """Returns the address to open in a browser of this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listening.host, listening.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


if __name__ == "__main__":
    run_program(main)
