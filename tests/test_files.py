import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from air.files import (
    FolderLock,
    _cgroup_limits,
    atomic,
    atomic_write,
    check_outputs,
    clear_stale,
    locks,
    memory_limit,
)

ROOT = Path(__file__).parent.parent


def test_the_new_file_takes_the_old_one_s_place(tmp_path):
    path = tmp_path / "deep" / "file"
    for text in (b"one", b"two"):
        with atomic_write(path) as file:
            file.write(text)
        assert path.read_bytes() == text
    assert list(path.parent.iterdir()) == [path] and path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        with atomic_write(path) as file:
            file.write(b"half of the n")
            raise OSError("disk full")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_an_existing_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == mode


def test_a_new_file_follows_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        with atomic_write(tmp_path / "file") as file:
            file.write(b"new")
        assert os.umask(0o077) == 0o077  # which is left as it was
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("exists", [True, False])
def test_the_target_of_a_link_is_written_and_the_link_stays(tmp_path, exists):
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.parent.mkdir()
    if exists:
        target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic_write(link) as file:
        file.write(b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_devices_and_fifos_are_written_directly_or_refused(tmp_path):
    with atomic_write(Path(os.devnull)) as file:
        file.write(b"gone")
    assert not Path(os.devnull).is_file()
    fifo, read = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    with atomic_write(fifo) as file:
        file.write(b"through")
    reader.join(timeout=10)
    assert read == [b"through"] and fifo.is_fifo()
    with pytest.raises(OSError, match="fifo is not a regular file"):
        with atomic_write(fifo, regular=True):
            pass


def test_outputs_may_not_replace_inputs_or_one_another(tmp_path):
    image, other, link, hard = (tmp_path / name for name in ("a.png", "b.png", "link.json", "hard.csv"))
    image.write_bytes(b"image")
    other.write_bytes(b"other")
    link.symlink_to(image)
    os.link(other, hard)
    new = tmp_path / "new.json"
    check_outputs({"--json": new, "--csv": tmp_path / "new.csv"}, [image, other])
    for outputs, words in (({"--json": image}, "--json would overwrite the input .*a.png"),
                           ({"--json": link}, "--json would overwrite the input .*a.png"),
                           ({"--csv": hard}, "--csv would overwrite the input .*b.png"),
                           ({"--csv": tmp_path / "A.PNG"}, "--csv would overwrite the input .*a.png"),
                           ({"--json": new, "--csv": tmp_path / "sub" / ".." / "new.json"},
                            "--csv would overwrite the output of --json"),
                           ({"--json": new, "--csv": tmp_path / "NEW.json"}, "--csv would overwrite the output of")):
        with pytest.raises(ValueError, match=words):
            check_outputs(outputs, [image, other])


def test_memory_is_the_machine_s_or_the_container_s(tmp_path, monkeypatch):
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory_limit() <= machine
    for limits, least in (([], machine), ([2**62], machine), ([5 * 2**20, 2**20], 2**20)):
        monkeypatch.setattr("air.files._cgroup_limits", lambda *_: limits)
        assert memory_limit() == least
    monkeypatch.setattr(os, "sysconf_names", {})
    assert memory_limit() == 2**20


@pytest.mark.parametrize("groups, files, limits", [
    ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "700\n", "memory.max": "900\n"}, [700, 900]),
    ("0::/outside/name\n", {"memory.max": "900\n"}, [900]),  # as a container sees itself
    ("9:name=systemd:/\n4:memory:/job\n0::/\n",
     {"memory/job/memory.limit_in_bytes": "700\n", "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"},
     [700, 2**63 - 4096]),
    ("4:cpu,cpuacct:/job\n", {"memory/job/memory.limit_in_bytes": "700\n"}, []),
    (None, {"memory.max": "900\n"}, [])])
def test_limits_of_control_groups(tmp_path, groups, files, limits):
    if groups is not None:
        (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(text)
    assert list(_cgroup_limits(tmp_path / "cgroup", tmp_path / "sys")) == limits


def test_what_a_killed_writer_leaves_is_cleared_and_what_another_writes_is_not(tmp_path):
    """Two writers in processes of their own, one of which is killed; its file looks like that of the other."""
    code = ("import sys, time; from pathlib import Path; from air.files import atomic_write\n"
            "with atomic_write(Path(sys.argv[1])) as file:\n"
            "    file.write(b'half'); file.flush(); print('writing', flush=True); time.sleep(60)")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name)], stdout=subprocess.PIPE)
               for name in ("dead", "live")]
    for writer in writers:
        assert writer.stdout.readline() == b"writing\n"
    (tmp_path / ".not-ours.air-tmp").touch()
    (tmp_path / f".{'0' * 16}.air-tmp").symlink_to(tmp_path / ".not-ours.air-tmp")
    kept = len(list(tmp_path.iterdir()))
    clear_stale(tmp_path)
    assert len(list(tmp_path.iterdir())) == kept == 4
    writers[0].kill()
    writers[0].wait()
    clear_stale(tmp_path)
    assert len(list(tmp_path.iterdir())) == kept - 1
    writers[1].kill()
    for writer in writers:
        writer.communicate()
    clear_stale(tmp_path)
    assert len(list(tmp_path.iterdir())) == kept - 2
    clear_stale(tmp_path / "nowhere")


def test_a_writer_whose_file_is_taken_for_stale_before_it_is_locked_begins_again(tmp_path, monkeypatch):
    create, taken = atomic._create, []

    def slow_create(path):
        descriptor = create(path)
        if not taken:
            clear_stale(tmp_path)
            taken.append(not os.path.exists(path))
        return descriptor

    monkeypatch.setattr(atomic, "_create", slow_create)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"whole")
    assert taken == [True] and [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]


def test_a_folder_that_cannot_be_written_is_named_and_not_the_temporary_file(tmp_path, monkeypatch):
    def refuse(path, *args):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError) as error:
        with atomic_write(tmp_path / "file"):
            pass
    assert error.value.filename == str(tmp_path)


def test_a_folder_is_one_s_own_until_the_lock_is_given_back_or_its_owner_dies(tmp_path):
    code = ("import sys, time; from pathlib import Path; from air.files import FolderLock\n"
            "with FolderLock() as lock:\n"
            "    lock.take(Path(sys.argv[1])); print('taken', flush=True); time.sleep(60)")
    with FolderLock() as lock:
        lock.take(tmp_path)
        lock.take(tmp_path)
        assert lock.folder == tmp_path
        with pytest.raises(ValueError, match="another process is at work in"), FolderLock() as other:
            other.take(tmp_path)
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"taken\n"
    with FolderLock() as lock:
        with pytest.raises(ValueError, match="another process is at work in"):
            lock.take(tmp_path)
    owner.kill()
    owner.communicate()
    with FolderLock() as lock:
        lock.take(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, None])
def test_where_there_are_no_locks_nobody_is_kept_out_and_nothing_is_taken_for_stale(tmp_path, monkeypatch, code):
    """File systems without locks, and platforms without fcntl."""
    def unsupported(*args):
        raise OSError(code, os.strerror(code))

    if code is None:
        for module in (locks, atomic):
            monkeypatch.setattr(module, "LOCKS", False)
    else:
        monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with FolderLock() as one, FolderLock() as other:
        one.take(tmp_path)
        other.take(tmp_path)
    with atomic_write(tmp_path / "file") as file:
        clear_stale(tmp_path)
        file.write(b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 1


def test_programs_are_ready_for_signals_before_torch_is_imported():
    """`air` and what the programs import first take no torch; the public names do, and are those of before."""
    code = ("import sys, air, air.files.startup\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
            "assert all(getattr(air, name) for name in air.__all__) and set(air.__all__) == set(air._HOMES)\n"
            "assert air.data.Sprites and set(air.__all__) <= set(dir(air)) and 'torch' in sys.modules\n"
            "assert not hasattr(air, 'nothing')")
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
