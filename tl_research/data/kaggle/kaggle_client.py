"""Run Kaggle's own client (`kaggle datasets download`), which needs no account for public data and resumes."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tl_research.errors import InputError
from tl_research.system.progress import bar

log = logging.getLogger(__name__)

# Importing the client signs in and may exit, hence a process. It allows anonymous downloads only if it is called
# `kaggle`. The thread ends it if this process is killed: standard input closes then.
CLIENT = """
import os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
sys.argv[0] = "kaggle"
from kaggle.cli import main
main()
"""
ANSWER_SECONDS = 15.0  # until its first line, which follows the first answer
STALL_SECONDS = 300.0  # it writes a MiB at a time, so a slow line pauses for long

TOKEN = (
    "create a token at https://www.kaggle.com/settings/api and save it as ~/.kaggle/kaggle.json, or set "
    "KAGGLE_USERNAME and KAGGLE_KEY, or KAGGLE_API_TOKEN"
)
SILENT = "Kaggle does not answer; is the network slow, or is there a proxy to set (HTTPS_PROXY)?"
WEB_PAGE = "the answer is a web page, not the data set; does this network want a login?"
REASONS = {
    "Authentication required|401 Client Error": "Kaggle asks for an account, or does not accept the credentials on "
    f"this machine; {TOKEN} (HTTP 401)",
    "have access to this resource|403 Client Error": "Kaggle does not let this account, or nobody without one, "
    "download it; open its page, sign in and accept the licence or the rules (a private data set is refused in the "
    f"same way, and a misspelt name may be). For an account {TOKEN} (HTTP 403)",
    "resource was not found|404 Client Error": "there is no such data set on Kaggle; check the name on its page "
    "(HTTP 404)",
    "rate limited|429 Client Error": "Kaggle has had too many requests; wait a while (HTTP 429)",
    r"on Kaggle's side|5\d\d Server Error": "Kaggle cannot answer now; try again later (HTTP 5xx)",
    "SSLError|CERTIFICATE_VERIFY": "the certificate of Kaggle's server is not trusted here (REQUESTS_CA_BUNDLE names "
    "those that are)",
    "timed out": SILENT,
    "Max retries exceeded|Connection|IncompleteRead": "no connection to Kaggle; is there a network?",
    "Expecting value": WEB_PAGE,
    "codec can't encode": "no Kaggle key has such characters as that on this machine; copy it again",
}
"""Patterns in the client's output, and the reason they stand for; the first that is found counts."""


def download(dataset: str, target: Path) -> None:
    """Download the zip of `owner/name` to `target`; what an interrupted download left is continued.

    Raises InputError with the reason in one line, and OSError where the disk is full.
    """
    folder = target.with_suffix(".download")
    folder.mkdir(parents=True, exist_ok=True)
    part, output = folder / f"{dataset.partition('/')[2]}.zip", folder / "output.txt"
    command = [sys.executable, "-P", "-W", "ignore", "-c", CLIENT]
    command += ["datasets", "download", dataset, "--path", str(folder), "--quiet"]
    # Where VERBOSE is set, the client prints the whole zip.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VERBOSE")}
    with output.open("w") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    with process:
        try:
            _watch(process, dataset, part, output)
        finally:
            process.kill()
    text = output.read_text(errors="replace")
    for line in re.findall("Warning: (.*chmod.*)", text):
        log.warning(line)
    if process.returncode:
        raise _failure(text, part)
    fault = _fault(part)
    if not fault:
        part.replace(target)
    shutil.rmtree(folder)
    if fault:
        raise InputError(fault)


def _watch(process: subprocess.Popen[bytes], dataset: str, part: Path, output: Path) -> None:
    """Show how far the download is until the client ends; raise InputError if it stands still or lacks space."""
    total, state, since = None, (0, 0), time.monotonic()
    with bar() as progress:
        task = progress.add_task(f"downloading {dataset} (MB)", total=None)
        while process.poll() is None:
            before, state = state, (_size(part), _size(output))
            since = since if state == before else time.monotonic()
            if time.monotonic() - since > (STALL_SECONDS if state[1] else ANSWER_SECONDS):
                raise InputError(_broken_off(part) if state[0] and state[1] else SILENT)
            total = _expected_size(part) or total
            need, free = (total or 0) - state[0], shutil.disk_usage(part.parent).free
            if need > free:
                raise InputError(
                    f"the download needs {need / 1e9:.2f} GB and {part.parent.parent} has {free / 1e9:.2f} GB free"
                )
            progress.update(task, completed=state[0] >> 20, total=total and total >> 20)
            time.sleep(0.1)


def _failure(text: str, part: Path) -> InputError | OSError:
    """The error for a client that failed, from its output."""
    if re.search(rf"\[Errno ({errno.ENOSPC}|{errno.EDQUOT})\]", text):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    reason = next((reason for pattern, reason in REASONS.items() if re.search(pattern, text)), None)
    if _size(part) and reason and "HTTP" not in reason:
        return InputError(_broken_off(part))
    lines = [line for line in text.splitlines() if line and not re.match("Dataset URL|License|Warning", line)]
    last = lines[-1 if lines[0].startswith("Traceback") else 0] if lines else "nothing"
    return InputError(reason or f"what Kaggle answered is not understood ({last})")


def _fault(part: Path) -> str | None:
    """Why a download that the client takes for complete is not used."""
    if not _size(part) or _size(part) < (_expected_size(part) or 0):
        return _broken_off(part)
    with part.open("rb") as file:
        return WEB_PAGE if file.read(100).lstrip().startswith(b"<") else None


def _broken_off(part: Path) -> str:
    total = _expected_size(part)
    return f"the download broke off after {_size(part):,}{f' of {total:,}' if total else ''} bytes; run again to go on"


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _expected_size(part: Path) -> int | None:
    """The size of the complete zip, which the client notes beside an unfinished one."""
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads(part.with_name(f"{part.name}.kaggle-partial").read_text())["size"] or 0)
    return None
