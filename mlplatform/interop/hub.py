"""A Hub id -> a folder on this machine, through huggingface_hub. Only data is fetched, never code or pickles."""

from __future__ import annotations

from pathlib import Path

from mlplatform.errors import CheckpointError

WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


def fetch(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> Path:
    """Return the local folder of a Hub repository, fetched when it isn't in the cache.

    Args:
        name: `owner/model`. revision: a branch, tag or commit.
        cache_dir: None for huggingface_hub's own. token: None for the one `hf auth login` stored.
        offline: use the cache alone, as HF_HUB_OFFLINE=1 does. endpoint: None for HF_ENDPOINT or the Hub.

    Raises:
        CheckpointError: no such repository or revision, no access, no network and not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=offline,
            endpoint=endpoint,
            allow_patterns=WANTED,
        )
    except HFValidationError:
        raise CheckpointError(f"'{name}' is neither a folder here nor a Hub id such as 'owner/model'") from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"'{name}' is neither a folder here nor in the Hub cache, and the Hub can't be reached (offline mode is "
            f"{'on' if offline else 'off'}); fetch it where there is a network, or give a folder"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        at = f" at revision '{revision}'" if revision else ""
        hint = "; log in with `hf auth login` or pass token=" if status in (401, 403) else ""
        raise CheckpointError(f"the Hub answered {status} for '{name}'{at}{hint}") from None
    except OSError as error:
        raise CheckpointError(f"'{name}' could not be fetched: {str(error).splitlines()[0]}") from None
    return Path(path)
