"""Upload of a finished folder to the Hugging Face hub. Nothing else in this package sends anything there."""

from __future__ import annotations

from pathlib import Path

from sparring.errors import InputError, RunError

WEIGHTS = ("*.safetensors", "*.gguf")


def push(folder: Path, to: str, private: bool = True) -> str:
    """Upload a folder as the model `to` (owner/name), made if it is not there; returns its address.

    private  who may see it; a repository that is there and open to all is not written to unless private is False
    Raises InputError, before anything is sent, for a folder that is not finished, a bad name or no token; RunError
    for what the hub or the network refuses.
    """
    _finished(folder)
    check_push(to)
    from huggingface_hub import HfApi, errors

    unreached = errors.HTTPError  # type: ignore[attr-defined]  # of the HTTP client, which is another in other versions
    api = HfApi()
    try:
        api.create_repo(to, private=private, exist_ok=True)
        if private and api.model_info(to).private is False:
            raise InputError(f"{to} is there already and open to all; say that it may be public, or give another name")
        api.upload_folder(repo_id=to, folder_path=folder, commit_message="Upload from Sparring")
    except errors.HFValidationError as error:
        raise InputError(f'"{to}" is not a name on the hub ({_line(error)}); give owner/name') from None
    except errors.OfflineModeIsEnabled:
        raise RunError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it") from None
    except errors.HfHubHTTPError as error:
        raise RunError(_refused(error.response.status_code, to, error.server_message or "")) from error
    except ValueError as error:  # the hub has looked at the card, and does not take it
        raise RunError(_refused(400, to, _line(error))) from error
    except (unreached, ConnectionError, TimeoutError, RuntimeError) as error:  # the last comes from its fast uploader
        said = _line(error) or type(error).__name__
        raise RunError(f"the hub ({api.endpoint}) cannot be reached ({said}); try again when it can") from error
    return f"{api.endpoint}/{to}"


def check_push(to: str) -> None:
    """Refuse, before any work is done, a bad name and a missing token. Nothing is sent."""
    from huggingface_hub import constants, get_token

    if to.count("/") != 1:
        raise InputError(f'"{to}" is not owner/name, such as me/my-model; give it so')
    if get_token() is None:
        raise InputError("there is no token for the hub; set HF_TOKEN, or log in once with `hf auth login`")
    if constants.HF_HUB_OFFLINE:
        raise RunError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")


def _finished(folder: Path) -> None:
    """Refuse what is not an exported model, and above all a run, which holds the data."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one that `sparring export` wrote")
    if (folder / "run.lock.yaml").exists() or (folder / "study.lock.yaml").exists():
        raise InputError(f"{folder} is a run, with its data in it; export a player, and give that folder")
    if ".unverified" in folder.name or any(folder.rglob("*.unverified.*")):
        raise InputError(f"{folder} was not found to be the player; export it again, and see what is said")
    if folder.name.endswith(".partial") or any(folder.rglob("*.tmp")):
        raise InputError(f"{folder} is not finished; export the player again")
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        raise InputError(f"{folder} holds no weights ({', '.join(WEIGHTS)}); give one that `sparring export` wrote")
    if not (folder / "README.md").is_file():
        raise InputError(f"{folder} has no model card (README.md); export the player again")


def _refused(status: int, to: str, said: str) -> str:
    reason = f" ({_line(said)})" if said else ""
    if status == 401:
        return f"the hub does not accept the token{reason}; make a new one that may write, and set HF_TOKEN"
    if status in (402, 403):
        return f"the token may not write to {to}{reason}; give a token that may, or another owner"
    if status == 404:
        return f"{to} cannot be found or made{reason}; check the owner's name, and that the token may write there"
    if status == 400:
        return f"the hub refuses what was sent{reason}; nothing was published"
    return f"the hub answered with an error, {status}{reason}; try again later"


def _line(said: object) -> str:
    return " ".join(str(said).split())[:200]
