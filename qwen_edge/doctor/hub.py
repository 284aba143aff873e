"""Check of the hub: where models come from, and whether it answers."""

from __future__ import annotations

from collections.abc import Iterator

from qwen_edge import paths
from qwen_edge.doctor.report import Check, Status
from qwen_edge.errors import DownloadError, HubUnreachableError
from qwen_edge.hub.web import Patience, StatusError, TransientError, open_url, require_reachable

GROUP = "Hub"
_LIMIT_S = 3.0


def check_hub() -> Iterator[Check]:
    """Endpoint, token (never shown), offline mode, and whether it answers a HEAD within 3 s."""
    from qwen_edge.hub.hf_settings import endpoint, is_offline

    address = endpoint()
    token = "with your token" if _has_token() else "without a token"
    if is_offline():
        yield Check(
            group=GROUP,
            name="hub",
            status="note",
            found="offline mode is on (HF_HUB_OFFLINE): nothing is fetched",
            advice="unset HF_HUB_OFFLINE",
        )
        return
    reason = why_silent(address)
    n_models = n_local_models()
    missing: Status = "note" if n_models else "warning"
    yield Check(
        group=GROUP,
        name="hub",
        status=missing if reason else "ok",
        found=f"{address} does not answer: {reason}" if reason else f"{address} answers, {token}",
        cost=_cost(n_models) if reason else "",
        advice="Check the connection; behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT."
        if reason
        else "",
    )


def why_silent(address: str, *, limit_s: float = _LIMIT_S) -> str:
    """Return why a server does not answer, "" where it does, whatever it says."""
    try:
        require_reachable(address, Patience(reach_s=limit_s))
        open_url(address, method="HEAD", timeout_s=limit_s).close()
    except StatusError:
        return ""
    except TransientError as error:
        return error.message if error.is_silent else ""
    except HubUnreachableError as error:
        return error.message.partition(": ")[2] or error.message
    except (DownloadError, ValueError) as error:
        return str(error)
    return ""


def n_local_models() -> int:
    """Return the number of GGUF files that have been fetched or converted into our folder and the hub's cache."""
    from qwen_edge.hub.hf_settings import cache_folder

    folders = ((paths.models_folder(), "**/*.gguf"), (cache_folder(), "models--*/snapshots/**/*.gguf"))
    return sum(sum(1 for _ in folder.glob(pattern)) for folder, pattern in folders)


def _cost(n_models: int) -> str:
    if n_models:
        return f"nothing new can be fetched; the {n_models} model file{'s' * (n_models > 1)} here will run"
    return "no model is here, and none can be fetched"


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())
