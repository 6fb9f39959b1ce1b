"""Shared models under test: a hub that is a folder, the parts of a card, refused folders."""

import shutil
from types import SimpleNamespace

import pytest
import yaml

from iwae import load_model
from iwae.errors import UserError


def front(card):
    """The front matter and the rest of a card."""
    _, matter, body = card.split("---\n", 2)
    return yaml.safe_load(matter), body


def card_of(folder):
    return (folder / "README.md").read_text()


def refused(folder, match):
    with pytest.raises(UserError, match=match) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


class FakeHub:
    """What of the hub's library is used, with a hub that is a folder."""

    def __init__(self, place):
        self.place, self.calls, self.error, self.sizes = place, [], None, {}
        names = "HFValidationError RevisionNotFoundError LocalTokenNotFoundError"
        names += " LocalEntryNotFoundError OfflineModeIsEnabled HTTPError"
        self.errors = SimpleNamespace(**{n: type(n, (Exception,), {}) for n in names.split()})
        refusal = self.errors.HfHubHTTPError = type("HfHubHTTPError", (Exception,), {})
        self.errors.RepositoryNotFoundError = type("RepositoryNotFoundError", (refusal,), {})
        self.HfApi = self._api

    def _api(self, token=None):
        self.calls.append(("api", token))
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        if self.error:
            raise self.error
        self.calls.append(("repo", repo_id, private, exist_ok))

    def create_branch(self, repo_id, *, branch, exist_ok):
        self.calls.append(("branch", repo_id, branch, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, revision, commit_message):
        self.calls.append(("upload", revision, commit_message))
        for name in allow_patterns:
            (self.place / repo_id).mkdir(parents=True, exist_ok=True)
            shutil.copy(folder_path / name, self.place / repo_id)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def model_info(self, repo_id, *, revision, files_metadata):
        if self.error:
            raise self.error
        self.calls.append(("info", revision, files_metadata))
        files = sorted((self.place / repo_id).iterdir())
        sizes = {path.name: path.stat().st_size for path in files} | self.sizes
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
        return SimpleNamespace(siblings=siblings or None)

    def snapshot_download(
        self, repo_id, *, revision, token, cache_dir, allow_patterns, local_files_only=False
    ):
        """As the real one does: links to files elsewhere."""
        snapshot = self.place / "snapshot"
        if local_files_only:
            if not snapshot.exists():
                raise self.errors.LocalEntryNotFoundError("no snapshot")
            return str(snapshot)
        self.calls.append(("download", revision, token, cache_dir, tuple(allow_patterns)))
        snapshot.mkdir()
        for name in allow_patterns:
            if (self.place / repo_id / name).exists():
                (snapshot / name).symlink_to(self.place / repo_id / name)
        return str(snapshot)

    def fetched(self):
        return [call for call in self.calls if call[0] == "download"]
