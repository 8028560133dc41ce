"""How a hub is asked for anything: with the library's token, without its telemetry, never compressed, and not for ever.

Whoever answers may be anyone: what comes is counted as it comes, redirects are few, and an answer that does not end
in time is left. The library's client does the rest: certificates, proxies, and the offline switch.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from requant.errors import CheckpointError, NotAvailableError, UsageError

TIMEOUT = 300.0
"""Seconds that a verb waits for a repository in all, beside the time that its bytes take; REQUANT_TIMEOUT sets it."""
SLOWEST = 1 << 14
"""Bytes that must come in a second, on average and after `TIMEOUT`."""
REDIRECTS = 5
ATTEMPTS = 3
"""How often a small file or a list is asked for, where waiting may mend what came instead."""
PAUSE = 1.0
"""Seconds before the second time, doubled with every further one."""
REFUSALS = {
    "GatedRepo": (
        "the repository is gated",
        "accept its conditions on its page, and set HF_TOKEN to a token of the account that accepted them",
    ),
    "RepoNotFound": (
        "no such repository",
        "look at its name, or at the path if a folder was meant; a private one wants HF_TOKEN",
    ),
    "RevisionNotFound": ("no such revision", "name a branch, a tag or a commit of this repository"),
}
"""What the Hub means by `X-Error-Code`: to who has no token it says 401 of a repository that does not exist."""
T = TypeVar("T")


class _AbsentError(NotAvailableError):
    """There is no such repository, or none that this token may see."""


class Patience:
    """Until when one waits: every byte that comes puts it off a little, up to `most` bytes where so many can be right.

    Without that, a server that breaks off and begins again could go on for ever.
    """

    def __init__(self, seconds: float | None = None, most: float = float("inf")) -> None:
        self._seconds, self._most = _timeout() if seconds is None else seconds, most
        self._until = time.monotonic() + self._seconds
        self._lock = threading.Lock()

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._until - time.monotonic()

    def heard(self, url: str, count: int) -> None:
        """Note bytes that came; raise NotAvailableError where time is over."""
        with self._lock:
            counted = min(count, self._most)
            self._most -= counted
            self._until += counted / SLOWEST
        if self.left() <= 0:
            raise NotAvailableError(
                f"{address(url)}: too slow: fewer than {SLOWEST:,} bytes a second, and {self._seconds:g} seconds more",
                "set REQUANT_TIMEOUT to more seconds; what a download got is kept",
            )


def headers(part: str = "") -> dict[str, str]:
    """Return what goes with a request; `part` is a range such as `bytes=0-7`.

    Not the library's own headers: its user agent tells what is installed here. Compressed, no range would fit.
    """
    from huggingface_hub import constants, get_token

    sent = {"user-agent": "requant", "accept-encoding": "identity"} | ({"range": part} if part else {})
    if not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and (token := get_token()):
        sent["authorization"] = f"Bearer {token}"
    return sent


def ask(url: str, part: str, patience: Patience, read: Callable[[Any], T]) -> T:
    """Ask for an address, or a part of it, and return what `read` makes of the answer; it is to use `chunks`.

    In a thread of its own, which is left behind when patience is at its end: no timeout of a socket ends an answer
    that comes byte by byte. Raises NotAvailableError then, and the client's own errors (`is_of_the_network`).
    """
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            done.put((_answer(url, part, read), None))
        except BaseException as error:  # whatever it is, it is raised where somebody waits
            done.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    while True:
        try:
            found, error = done.get(timeout=max(0.0, min(1.0, patience.left())))
        except Empty:
            patience.heard(url, 0)
            continue
        if error is not None:
            raise error
        return found  # type: ignore[return-value]


def _answer(url: str, part: str, read: Callable[[Any], T]) -> T:
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    session: Any = get_session()
    request = session.build_request("GET", url, headers=headers(part), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    for _ in range(1 + REDIRECTS):
        try:
            answer = session.send(request, stream=True, follow_redirects=False)  # it would read the body of each
        except OfflineModeIsEnabled:
            advice = "unset it, or name a folder"
            raise NotAvailableError(f"{address(url)}: HF_HUB_OFFLINE is set, so nothing is asked", advice) from None
        try:
            if answer.next_request is None:
                return read(answer)
            request = answer.next_request  # without the token, where it leads to another host
        finally:
            answer.close()
    raise NotAvailableError(f"{address(url)}: redirected more than {REDIRECTS} times", "look at HF_ENDPOINT")


def chunks(url: str, answer: Any, patience: Patience) -> Iterator[bytes]:
    """Yield an answer's bytes as they come, none unpacked; raise NotAvailableError where it is packed all the same."""
    if (packed := answer.headers.get("content-encoding", "identity")) != "identity":
        advice = "a proxy, or the server: look at HF_ENDPOINT"
        raise NotAvailableError(f"{address(url)}: sent as {packed:.20}, though asked not to be compressed", advice)
    for chunk in answer.iter_raw():
        patience.heard(url, len(chunk))
        yield chunk


def attempts(most: int) -> Iterator[int]:
    """Yield as often as something is tried, from 0, and wait before each but the first: twice as long every time."""
    for number in range(most):
        if number:
            time.sleep(PAUSE * 2 ** (number - 1))
        yield number


def whole(url: str, part: str, patience: Patience, limit: int) -> tuple[Any, bytes]:
    """Return an answer, for its headers, and its bytes; raise where it is refused, not the `part`, or over `limit`.

    What waiting may mend, a broken connection or a server that is busy (429, 503), is waited for, a few times.
    """

    def read(answer: Any) -> tuple[Any, bytes] | int:
        refuse(url, answer)
        if answer.status_code not in (200, 206):
            return int(answer.status_code)
        if part and answer.status_code != 206:
            raise NotAvailableError(
                f"{address(url)}: does not serve parts of files", "Download the checkpoint instead."
            )
        data = bytearray()
        for chunk in chunks(url, answer, patience):
            data += chunk
            if len(data) > limit:
                raise CheckpointError(f"{address(url)}: more than {limit:,} bytes", "look at HF_ENDPOINT")
        return answer, bytes(data)

    failed = NotAvailableError("")
    for _ in attempts(ATTEMPTS):
        try:
            found = ask(url, part, patience, read)
        except Exception as error:
            if not is_of_the_network(error):
                raise
            failed = unreachable(url, error)
            continue
        if not isinstance(found, int):
            return found
        failed = NotAvailableError(f"{address(url)}: status {found}", "try again later")
    raise failed


def refuse(url: str, answer: Any) -> None:
    """Raise for an answer that trying again does not change."""
    status, code = answer.status_code, answer.headers.get("x-error-code", "")
    if status in (401, 403, 404) and code in REFUSALS:
        told, advice = REFUSALS[code]
        kind = _AbsentError if code == "RepoNotFound" else NotAvailableError
        raise kind(f"{address(url)}: {told}, status {status}", advice)
    if status in (401, 403):
        advice = "set HF_TOKEN to a token that may read this repository, and accept its conditions"
        raise NotAvailableError(f"{address(url)}: refused, status {status}", advice)
    if status in (404, 410):
        advice = "the repository, the revision or the file is gone or private; look at HF_TOKEN and HF_ENDPOINT"
        raise NotAvailableError(f"{address(url)}: no such file, status {status}", advice)
    if status not in (200, 206, 408, 416, 429) and status < 500:
        raise NotAvailableError(f"{address(url)}: status {status}", "look at HF_ENDPOINT and at proxies")


def is_absent(error: NotAvailableError) -> bool:
    """Say whether an error is that there is no such repository, or none to be seen."""
    return isinstance(error, _AbsentError)


def unreachable(url: str, error: Exception) -> NotAvailableError:
    """Return the error to raise for one of the network's."""
    told = f"{address(url)}: {trouble(error)}"
    return NotAvailableError(told, "look at the network, at HF_ENDPOINT and at proxies; or name a folder")


def trouble(error: Exception) -> str:
    """Return what an error of the client says; not what it quotes of headers, which may be the token."""
    said = "" if "header" in str(error).lower() else f": {error}"
    return f"{type(error).__name__}{said:.200}"


def address(url: str) -> str:
    """Return an address as it may be shown: without a password or a signature."""
    return re.sub(r"(?<=://)[^/@]*@", "", url).partition("?")[0]


def number(text: str) -> int | None:
    """Return a number of bytes as a header has it, None where it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None


def is_of_the_network(error: Exception) -> bool:
    """Say whether waiting may mend an error: httpx's in 1.x of the library, httpx2's in 2.x, no class in common."""
    return type(error).__module__.startswith("httpx")


def _timeout() -> float:
    text = os.environ.get("REQUANT_TIMEOUT", "")
    try:
        seconds = float(text or TIMEOUT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 10**9:
        raise UsageError(f"REQUANT_TIMEOUT={text}: expected a number of seconds", f"Without it, {TIMEOUT:g}.")
    return seconds
