"""Models on the Hugging Face hub: only a model's own files are uploaded and fetched."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from iwae.errors import UserError
from iwae.models.conditional import Model
from iwae.reports.export import CARD, FILES
from iwae.runs.model_files import LIMITS, load_model, read_model, refuse_large_model_file
from iwae.wording import first_error_line

SERVER_FAULT = 500
"""The least HTTP status of a failure of the hub itself, rather than of the request."""


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Model exported by iwae",
    token: str | None = None,
) -> str:
    """Upload an exported model to the Hugging Face hub, as one commit.

    Args:
        folder: folder that `export_run` wrote.
        repo_id: OWNER/NAME; created if it does not exist.
        private: whether a repository is private when it is created.
        revision: a branch, created if it does not exist (default: the main branch).
        message: commit message.
        token: token of the hub; by default that of `hf auth login` or HF_TOKEN.

    Returns:
        The URL of the commit.

    Raises:
        UserError: if the folder holds no export, or the hub is unavailable or refuses it.
    """
    folder = Path(folder)
    load_model(folder)
    if not (folder / CARD).is_file():
        raise UserError(f"{folder} has no {CARD}: make it by `iwae export RUN {folder}`")
    hub = _hub()
    with _hub_errors(hub, repo_id, revision):
        api = hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(FILES),
            revision=revision,
            commit_message=message,
        )
    return str(commit.commit_url)


def from_pretrained(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> Model:
    """Load a model from the Hugging Face hub or its local cache; runs no code from there.

    Its two files are fetched if they are, by the hub's word, no larger than `load_model` accepts.
    If the hub is unreachable, the cached copy is used, with a warning.

    Args:
        repo_id: OWNER/NAME.
        revision: a branch, tag or commit; a commit always names the same model.
        token: token of the hub, for a private model.
        cache_dir: folder of the cache (default: that of the hub's other models).

    Raises:
        UserError: if it is unavailable, or no model (see `load_model`).
    """
    hub = _hub()
    fetch = partial(
        hub.snapshot_download,
        repo_id,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        allow_patterns=list(LIMITS),
    )
    with _hub_errors(hub, repo_id, revision):
        try:
            sizes = _file_sizes(hub.HfApi(token=token), repo_id, revision)
        except (hub.errors.HFValidationError, hub.errors.RevisionNotFoundError):
            raise
        except _failures(hub) as error:
            folder = _cached(hub, repo_id, fetch, error)
        else:
            _check_files(repo_id, sizes)
            folder = fetch()
    paths = [Path(folder) / name for name in LIMITS]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{repo_id} is not a model of iwae: it has no {path.name}")
    return read_model(*(path.resolve() for path in paths))  # the cache consists of links


def _file_sizes(api: Any, repo_id: str, revision: str | None) -> dict[str, int | None]:
    """The size in bytes of each file in a repository, as stated by the hub."""
    info = api.model_info(repo_id, revision=revision, files_metadata=True)
    return {file.rfilename: file.size for file in info.siblings or ()}


def _check_files(repo_id: str, sizes: Mapping[str, int | None]) -> None:
    """Raise UserError if a file of the model is missing, or too large to be fetched."""
    for name, limit in LIMITS.items():
        if name not in sizes:
            raise UserError(f"{repo_id} is not a model of iwae: it has no {name}")
        size = sizes[name]
        if size is None:
            raise UserError(f"the hub does not say how large {name} of {repo_id} is: not fetched")
        refuse_large_model_file(f"{name} of {repo_id}", size, limit)


def _cached(hub: Any, repo_id: str, fetch: Callable[..., str], unreachable: Exception) -> str:
    """The cached folder of a model; raises the error of the hub if there is none.

    The cache does not replace an answer: a model that the hub refuses or has deleted stays refused.
    """
    status = getattr(getattr(unreachable, "response", None), "status_code", None)
    if status is not None and status < SERVER_FAULT:
        raise unreachable
    try:
        folder = fetch(local_files_only=True)
        warnings.warn(
            f"the hub cannot be asked ({first_error_line(unreachable)}): this is the copy of "
            f"{repo_id} that was fetched before, {Path(folder).name}",
            stacklevel=4,
        )
        return folder
    except hub.errors.LocalEntryNotFoundError as error:
        if isinstance(unreachable, hub.errors.HfHubHTTPError | hub.errors.LocalTokenNotFoundError):
            raise unreachable from None
        reason = first_error_line(unreachable)
        raise UserError(
            f"the hub cannot be reached, and {repo_id} is not in the cache: {reason}"
        ) from error


def _hub() -> Any:
    """The library, or UserError with the command that installs it."""
    try:
        import huggingface_hub
        import huggingface_hub.errors  # the package does not import it
    except ImportError as error:
        raise UserError("sharing needs huggingface_hub: pip install 'iwae[hub]'") from error
    return huggingface_hub


@contextmanager
def _hub_errors(hub: Any, repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn an error of the hub into a UserError with the remedy."""
    errors, login = hub.errors, "log in by `hf auth login`, or set HF_TOKEN"
    known = {  # subclasses first; after a final colon comes the library's reason
        errors.HFValidationError: f"{repo_id!r} is not a name on the hub: give OWNER/NAME",
        errors.RevisionNotFoundError: (
            f"{repo_id} has no revision {(revision or 'main')!r} on the hub"
        ),
        errors.RepositoryNotFoundError: (
            f"{repo_id} is not on the hub, or not for you: check the name, and {login}"
        ),
        errors.LocalTokenNotFoundError: f"the hub wants to know who you are: {login}",
        errors.LocalEntryNotFoundError: (
            f"the hub cannot be reached, and {repo_id} is not in the cache: "
        ),
        errors.OfflineModeIsEnabled: "the hub cannot be reached: ",
        errors.HfHubHTTPError: f"the hub refuses {repo_id}: ",
        Exception: "the hub cannot be used: ",
    }
    try:
        yield
    except UserError:
        raise
    except _failures(hub) as error:
        words = next(words for kind, words in known.items() if isinstance(error, kind))
        reason = first_error_line(error) if words.endswith(": ") else ""
        status = getattr(getattr(error, "response", None), "status_code", None)
        denied = words.startswith("the hub refuses") and status in (401, 403)
        raise UserError(words + reason + f"; {login}" * denied) from error


def _failures(hub: Any) -> tuple[type[Exception], ...]:
    """Exceptions of the library if the hub is unusable, none of which a bug of ours would raise.

    These are the errors that it names, including those of its HTTP client, which differs between
    major versions; `ValueError` for an answer that it cannot parse; and `RuntimeError` for a failed
    upload.
    """
    named = [value for value in vars(hub.errors).values() if isinstance(value, type)]
    errors = [value for value in named if issubclass(value, Exception)]
    return (*errors, OSError, ValueError, RuntimeError)
