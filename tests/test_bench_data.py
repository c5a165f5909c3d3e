import itertools
import json

import pytest

from air.data import Sprites
from air.data.cache import cache_dir
from benchmarks import data


def test_data_are_timed_in_a_temporary_cache(monkeypatch, tmp_path, capsys):
    built = []
    times = itertools.chain([0, 5, 10, 13, 20, 21, 30, 32, 40, 44, 50, 52], itertools.repeat(0))
    monkeypatch.setattr(Sprites, "generate",
                        lambda *arguments: built.append((cache_dir(), cache_dir().parent.exists())))
    monkeypatch.setattr(data.time, "perf_counter", lambda: next(times))
    data.main(["sprites", "--scenes", "50", "--json", str(tmp_path / "data.json")])
    (folder, existed), = set(built)
    assert len(built) == 6 and existed and not folder.parent.exists() and folder != cache_dir()
    report = json.loads((tmp_path / "data.json").read_text())
    assert report["rows"] == {"sprites": {"generate_s": 5, "load_s": 2}} and report["scenes"] == 50
    assert "| sprites | 5.00 | 2.000 |" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, word", [(["cifar"], "no data set named cifar"), (["--scenes", "0"], "at least 1"),
                                             (["multi-mnist", "--data.root", "/nowhere"], "MNIST")])
def test_wrong_arguments_are_explained(arguments, word, capsys):
    with pytest.raises(SystemExit) as ended:
        data.main(arguments)
    assert ended.value.code == 2 and word in capsys.readouterr().err
