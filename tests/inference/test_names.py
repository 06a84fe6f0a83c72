"""A hub that gives no answer is told of in seconds, before libraries try it again and again."""

import socket
import time
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from tango.inference import names
from tango.inference.names import CheckpointError, check_pretrained

NEVER = "nobody/never-downloaded-1234"


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_does_not_answer(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    monkeypatch.setattr(names, "HUB_SECONDS", 0.3)
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"'{NEVER}' is no folder and not in .*{silent} cannot be reached"):
        check_pretrained(NEVER)
    assert time.monotonic() - begun < 20


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as nobody:  # has a port, so that nobody else gets it, and does not listen
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(CheckpointError, match=rf"hf download {NEVER}"):
            check_pretrained(NEVER)


def test_offline_nothing_is_asked(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    check_pretrained(NEVER)


@pytest.mark.parametrize("path", ["/no/such", "./such", "../such", "~/such", "such", "one/of/many", "~nobody/such"])
def test_what_is_neither_a_folder_nor_a_name_on_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=rf"pretrained='{path}': no such folder, and not a hub id of the form"):
        check_pretrained(path)
