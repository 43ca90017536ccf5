import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from typing import ClassVar

import numpy as np
import pytest

from ckpt_tools.analyzer import Analyzer, Out
from ckpt_tools.errors import ResultsError
from ckpt_tools.results import Group, check, check_target, write_results
from ckpt_tools.results.sink import Sink
from ckpt_tools.results.target import replacing

HDF5 = b"\x89HDF\r\n\x1a\n"


def test_a_free_name_in_a_writable_folder_passes_and_nothing_is_left(tmp_path):
    assert check_target(tmp_path / "r.h5") == tmp_path / "r.h5"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(ResultsError, match=f"mkdir -p {tmp_path / 'deep'}"):
        check_target(tmp_path / "deep" / "r.h5")


def test_a_folder_is_no_target(tmp_path):
    with pytest.raises(ResultsError, match=r"it is a folder.*results\.h5"):
        check_target(tmp_path, force=True)


def test_an_existing_file_needs_force(tmp_path):
    path = tmp_path / "r.h5"
    path.write_bytes(HDF5)
    with pytest.raises(ResultsError, match="--force"):
        check_target(path)
    assert check_target(path, force=True) == path


def test_force_does_not_destroy_other_files(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights of a month")
    with pytest.raises(ResultsError, match="no HDF5 file"):
        check_target(path, force=True)
    assert path.read_bytes() == b"weights of a month"


def test_an_unwritable_folder_is_named_before_the_long_work():
    with pytest.raises(ResultsError, match=r"Cannot write /proc/r\.h5: .*-o"):
        check_target("/proc/r.h5")


def test_a_symbolic_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "r.h5"
    link.symlink_to(tmp_path / "disk" / "real.h5")
    with replacing(link) as sink:
        sink.write(HDF5)
    assert link.is_symlink() and (tmp_path / "disk" / "real.h5").read_bytes() == HDF5


def test_the_file_takes_its_place_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "r.h5"
    path.write_bytes(HDF5 + b"old")
    with pytest.raises(ZeroDivisionError), replacing(path, force=True) as sink:
        sink.write(HDF5 + b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == HDF5 + b"old"
    with replacing(path, force=True) as sink:
        sink.write(HDF5 + b"new")
        assert path.read_bytes() == HDF5 + b"old"
    assert path.read_bytes() == HDF5 + b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["r.h5"]


def test_the_file_gets_the_permissions_of_any_new_file(tmp_path):
    with replacing(tmp_path / "r.h5") as sink:
        sink.write(HDF5)
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "r.h5").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_ctrl_c_waits_until_the_file_is_in_place(tmp_path):
    reached = []
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "r.h5") as sink:
        os.kill(os.getpid(), signal.SIGINT)
        sink.write(HDF5)
        reached.append(True)
    assert reached and (tmp_path / "r.h5").read_bytes() == HDF5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_may_write_too(tmp_path):
    def write():
        with replacing(tmp_path / "r.h5") as sink:
            sink.write(HDF5)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tmp_path / "r.h5").read_bytes() == HDF5


def test_a_sink_reads_back_what_was_written_and_zeros_elsewhere(tmp_path):
    sink = Sink(tmp_path / "f")
    sink.write(b"abc")
    assert sink.seek(5) == 5
    sink.write(memoryview(b"fg"))
    assert (sink.tell(), sink.seek(0, os.SEEK_END)) == (7, 7)
    sink.seek(0)
    assert sink.read(9) == b"abc\0\0fg\0\0"
    sink.check()
    sink.close()


@pytest.fixture
def small_files():
    """A limit on the size of files: what a full disk looks like to a process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_refused_write_is_kept_and_told_once_asked(tmp_path, small_files):
    sink = Sink(tmp_path / "f")
    sink.write(b"abcdef")
    sink.seek(1)
    sink.write(b"XYZ__")
    sink.seek(0)
    assert sink.read(6) == b"aXYZ__"
    assert (tmp_path / "f").read_bytes() == b"abcd"
    with pytest.raises(OSError, match="File too large"):
        sink.sync()
    sink.close()


class Endless:
    """Records made on demand; notes which were asked for."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        self.asked.append(index)
        return check(Noise(), {"x": np.random.default_rng(index).random(20_000)}, "here", step=index)


class Noise(Analyzer):
    """Numbers that do not compress."""

    name = "noise"
    outputs: ClassVar = {"x": Out(("i",))}


def test_a_full_disk_ends_the_work_at_once(tmp_path, small_files, monkeypatch):
    monkeypatch.setattr("ckpt_tools.results.writer._BLOCK_BYTES", 1)
    records = Endless()
    group = Group.of(Noise(), records)
    with pytest.raises(ResultsError, match="File too large"):
        write_results(tmp_path / "r.h5", [group])
    assert len(records.asked) < 1.5 * len(records)


FULL_DISK = """
import resource, sys
import numpy as np
from ckpt_tools.analyzer import Analyzer, Out
from ckpt_tools.errors import ResultsError
from ckpt_tools.results import Group, check, write_results

class Noise(Analyzer):
    name = "noise"
    outputs = {"x": Out(("i",))}

rows = [check(Noise(), {"x": np.random.default_rng(i).random(20_000)}, "here", step=i) for i in range(6)]
import h5py
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
try:
    write_results(sys.argv[2], [Group.of(Noise(), rows)], {})
except ResultsError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 3000, 300_000])
def test_a_full_disk_is_one_line_and_no_crash(tmp_path, limit):
    command = [sys.executable, "-c", FULL_DISK, str(limit), str(tmp_path / "r.h5")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Cannot write {tmp_path / 'r.h5'}: File too large. Free some space")
    assert list(tmp_path.iterdir()) == []
