"""Serves models from settings until a signal ends it: what the programs that serve have in common."""

from collections.abc import Callable
from importlib.util import find_spec

from minimind_sft.errors import UserError
from minimind_sft.settings.serve import ListeningSettings, ServeSettings
from minimind_sft.terminal import say

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "llguidance")


def serve_models(settings: ServeSettings, ready: Callable[[str], None]) -> None:
    """Loads the models and serves them; calls `ready` with the address for a browser when it has begun.

    Raises:
        UserError: if a package is missing, or weights or the port cannot be used.
    """
    require_packages()
    from minimind_sft.serving.application import make_application
    from minimind_sft.serving.models import load_models
    from minimind_sft.serving.server import listen, serve
    with listen(settings.listening) as listener:
        models = load_models(settings, say)
        for model in models:
            say(f"{'model':<12}{model.name}: {model.loaded.path}, KV cache of {model.engine.cache_tokens:,} tokens, "
                f"{model.engine.bytes / 2**20:,.0f} MiB")
        if settings.listening.is_open and settings.listening.key is None:
            say(f"{'notice':<12}everybody who reaches {settings.listening.host} can use the models: there is no "
                "--api_key")
        app = make_application(models, settings.listening, settings.limits)
        opened = address(settings.listening, listener.getsockname()[1])
        serve(app, listener, settings.limits, ready=lambda: ready(opened))


def require_packages() -> None:
    """Checks that the packages of the extra [serve] are installed.

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
