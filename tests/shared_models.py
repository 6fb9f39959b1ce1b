"""Helpers for tests of shared models: a fake hub, the parts of a card, refused folders."""

import shutil
from types import SimpleNamespace

import pytest
import yaml

from iwae import load_model
from iwae.errors import UserError


def split_card(card):
    """The front matter and the body of a model card."""
    _, matter, body = card.split("---\n", 2)
    return yaml.safe_load(matter), body


def read_card(folder):
    return (folder / "README.md").read_text()


def assert_refused(folder, match):
    with pytest.raises(UserError, match=match) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


class FakeHub:
    """The part of huggingface_hub that iwae uses, with a folder as the hub."""

    def __init__(self, folder):
        self.folder, self.calls, self.error, self.sizes = folder, [], None, {}
        names = "HFValidationError RevisionNotFoundError LocalTokenNotFoundError"
        names += " LocalEntryNotFoundError OfflineModeIsEnabled HTTPError"
        self.errors = SimpleNamespace(**{n: type(n, (Exception,), {}) for n in names.split()})
        http_error = self.errors.HfHubHTTPError = type("HfHubHTTPError", (Exception,), {})
        self.errors.RepositoryNotFoundError = type("RepositoryNotFoundError", (http_error,), {})
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
            (self.folder / repo_id).mkdir(parents=True, exist_ok=True)
            shutil.copy(folder_path / name, self.folder / repo_id)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def model_info(self, repo_id, *, revision, files_metadata):
        if self.error:
            raise self.error
        self.calls.append(("info", revision, files_metadata))
        files = sorted((self.folder / repo_id).iterdir())
        sizes = {path.name: path.stat().st_size for path in files} | self.sizes
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
        return SimpleNamespace(siblings=siblings or None)

    def snapshot_download(
        self, repo_id, *, revision, token, cache_dir, allow_patterns, local_files_only=False
    ):
        """Return a folder of links to files elsewhere, as the real library does."""
        snapshot = self.folder / "snapshot"
        if local_files_only:
            if not snapshot.exists():
                raise self.errors.LocalEntryNotFoundError("no snapshot")
            return str(snapshot)
        self.calls.append(("download", revision, token, cache_dir, tuple(allow_patterns)))
        snapshot.mkdir()
        for name in allow_patterns:
            if (self.folder / repo_id / name).exists():
                (snapshot / name).symlink_to(self.folder / repo_id / name)
        return str(snapshot)

    def downloads(self):
        return [call for call in self.calls if call[0] == "download"]
