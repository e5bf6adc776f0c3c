"""Clients that ask again and again, each in a thread of its own, and remember what they got."""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import closing
from typing import Any

from tests.processes import PATIENCE_S

_PAUSE_S = 0.02  # so that several leave the processors to those they ask


class Client:
    """Asks one path until told to stop, or until nobody is there any more.

    Args:
        kept: keep the connection for the next request. Where it has been closed by then, as HTTP
            allows, the request is sent again over another.
    """

    def __init__(self, port: int, path: str, *, kept: bool) -> None:
        self.answers: list[Any] = []  # what each 200 had
        self.others: list[tuple[int, str]] = []  # status and text of what was no 200
        self.lost = 0  # requests that had no answer
        self.asked = threading.Condition()
        self._port, self._path, self._kept = port, path, kept
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def until(self, answer: Any) -> None:
        """Wait until it has got *answer*."""
        with self.asked:
            said = f"no {answer}, but {self.others} and {self.lost} lost"
            assert self.asked.wait_for(lambda: answer in self.answers, PATIENCE_S), said

    def stop(self) -> None:
        self._enough.set()
        self.join()

    def join(self) -> None:
        """Wait until it has stopped by itself."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def _ask(self) -> None:
        headers = {} if self._kept else {"Connection": "close"}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        with closing(connection):
            while not self._enough.wait(_PAUSE_S):
                reused = connection.sock is not None
                try:
                    connection.request("GET", self._path, headers=headers)
                    answer = connection.getresponse()
                    text = answer.read().decode()
                except ConnectionRefusedError:
                    return
                except ConnectionError:
                    connection.close()
                    self.lost += not reused
                    continue
                with self.asked:
                    if answer.status == 200:
                        self.answers.append(json.loads(text))
                    else:
                        self.others.append((answer.status, text))
                    self.asked.notify_all()
