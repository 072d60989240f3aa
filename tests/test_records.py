"""Recorded numbers: the line, the modes, the file, the quotes."""

import json
import math

import pytest
import torch

from vlnotes import records


@pytest.fixture(autouse=True)
def own_file(tmp_path, monkeypatch):
    """Every test has a records file of its own and starts without a mode."""
    monkeypatch.setenv("VLNOTES_RECORDS_FILE", str(tmp_path / "data" / "records.json"))
    monkeypatch.delenv("VLNOTES_RECORDS", raising=False)
    monkeypatch.delenv("CI", raising=False)
    return tmp_path / "data" / "records.json"


@pytest.fixture
def mode(monkeypatch):
    return lambda word: monkeypatch.setenv("VLNOTES_RECORDS", word)


def write(monkeypatch, name, value, **rest):
    with monkeypatch.context() as patch:
        patch.setenv("VLNOTES_RECORDS", "write")
        records.record(name, value, **rest)


def test_the_line_reads_as_promised(monkeypatch, mode, capsys):
    write(monkeypatch, "clip_full_r1", 60.8, tolerance=6, unit="%")
    capsys.readouterr()
    mode("strict")
    records.record("clip_full_r1", 61.3, tolerance=6, unit="%")
    assert capsys.readouterr().out == "clip_full_r1   61.3 %   expected 60.8 +- 6.0   ok\n"


def test_a_write_run_prints_the_line_that_everybody_sees_later(monkeypatch, mode, capsys):
    write(monkeypatch, "a", 2.0, tolerance=0.5, unit="nats", digits=2)
    written = capsys.readouterr().out
    mode("strict")
    records.record("a", 2.0, tolerance=0.5, unit="nats", digits=2)
    assert capsys.readouterr().out == written == "a   2.00 nats   expected 2.00 +- 0.50   ok\n"


def test_strict_fails_outside_and_only_outside(monkeypatch, mode):
    write(monkeypatch, "a", 10.0, tolerance=1, seed=3)
    mode("strict")
    records.record("a", 11.0, tolerance=1)
    records.record("a", 9.0, tolerance=1)
    for value in (11.01, 8.99):
        with pytest.raises(AssertionError, match=r"OUTSIDE.*torch.*seed 3.*make records"):
            records.record("a", value, tolerance=1)


def test_relative_tolerance_is_added(monkeypatch, mode):
    write(monkeypatch, "a", -200.0, tolerance=1)
    mode("strict")
    records.record("a", -210.9, tolerance=1, relative=0.05)
    with pytest.raises(AssertionError, match="OUTSIDE"):
        records.record("a", -211.1, tolerance=1, relative=0.05)


def test_an_exact_record_allows_nothing(monkeypatch, mode):
    write(monkeypatch, "a", math.log(4), tolerance=0)
    mode("strict")
    records.record("a", math.log(4), tolerance=0)
    with pytest.raises(AssertionError):
        records.record("a", math.log(4) + 1e-9, tolerance=0)


def test_a_reader_who_changes_something_is_told_and_not_stopped(monkeypatch, capsys):
    write(monkeypatch, "a", 10.0, tolerance=1)
    records.record("a", 50.0, tolerance=1)
    records.record("brand_new", 1.0, tolerance=1)
    out = capsys.readouterr().out
    assert "you changed something, or we did" in out
    assert "brand_new   1.0   no record yet" in out


def test_an_unknown_name_fails_where_it_is_strict_and_says_how_to_record(mode, monkeypatch):
    mode("strict")
    with pytest.raises(AssertionError, match="nothing is recorded.*make records"):
        records.record("brand_new", 1.0, tolerance=1)
    monkeypatch.delenv("VLNOTES_RECORDS")
    monkeypatch.setenv("CI", "1")
    with pytest.raises(AssertionError, match="nothing is recorded"):
        records.record("brand_new", 1.0, tolerance=1)


def test_each_device_class_has_its_own_value_and_falls_back_to_any(monkeypatch, mode, capsys):
    write(monkeypatch, "a", 10.0, tolerance=1, device="any")
    write(monkeypatch, "a", 20.0, tolerance=1, device=torch.device("cuda", 1))
    mode("strict")
    records.record("a", 20.0, tolerance=1, device="cuda")
    records.record("a", 10.0, tolerance=1, device="mps")
    for value, device in ((10.0, "cuda"), (20.0, "cpu")):
        with pytest.raises(AssertionError, match="OUTSIDE"):
            records.record("a", value, tolerance=1, device=device)


def test_a_number_known_only_elsewhere_does_not_fail_here(monkeypatch, mode, capsys):
    write(monkeypatch, "a", 10.0, tolerance=1, device="cpu")
    mode("strict")
    records.record("a", 99.0, tolerance=1, device="cuda")
    assert "no record yet for cuda; 10.0 on cpu" in capsys.readouterr().out


def test_the_file_says_how_the_number_was_made(monkeypatch, own_file):
    write(monkeypatch, "b", 1.0, tolerance=0.5, relative=0.1, unit="%", seed=7)
    write(monkeypatch, "a", torch.tensor([2.5], requires_grad=True), tolerance=0)
    text = own_file.read_text()
    stored = json.loads(text)
    assert list(stored) == ["a", "b"]  # sorted, so that a change reads as a small difference
    assert stored["a"]["any"]["value"] == 2.5
    entry = stored["b"]["any"]
    assert (entry["tolerance"], entry["relative"], entry["unit"], entry["seed"]) == (0.5, 0.1, "%", 7)
    assert entry["made_with"]["torch"] == torch.__version__
    assert text.endswith("}\n")
    assert [path.name for path in own_file.parent.iterdir()] == ["records.json"]


def test_nothing_is_written_in_the_other_modes(mode, own_file):
    mode("warn")
    records.record("a", 1.0, tolerance=1)
    assert not own_file.exists()


@pytest.mark.parametrize(
    ("error", "match", "value", "rest"),
    [
        (ValueError, "value is nan", math.nan, {}),
        (ValueError, "value is inf", torch.tensor(math.inf), {}),
        (ValueError, "one number.*got 2", torch.zeros(2), {}),
        (TypeError, "expected a number", "much", {}),
        (ValueError, "tolerances are >= 0", 1.0, {"tolerance": -1}),
        (ValueError, "tolerances are >= 0", 1.0, {"tolerance": math.inf}),
        (ValueError, "tolerances are >= 0", 1.0, {"relative": math.nan}),
        (ValueError, "digits", 1.0, {"digits": -1}),
        (ValueError, "one word", 1.0, {"name": "two words"}),
        (ValueError, "records are kept for", 1.0, {"device": "xla"}),
    ],
)
def test_bad_values_are_refused(error, match, value, rest):
    arguments = {"name": "a", "tolerance": 1.0, **rest}
    with pytest.raises(error, match=match):
        records.record(arguments.pop("name"), value, **arguments)


def test_a_wrong_mode_is_refused(mode):
    mode("loose")
    with pytest.raises(ValueError, match="strict, warn, write.*'loose'"):
        records.record("a", 1.0, tolerance=1)


def test_a_broken_file_is_named(own_file):
    own_file.parent.mkdir()
    own_file.write_text("{")
    with pytest.raises(ValueError, match="records.json is no JSON"):
        records.load()


def test_small_numbers_never_show_as_zero_and_large_ones_are_grouped(monkeypatch):
    write(monkeypatch, "small", 0.00004, tolerance=1)
    write(monkeypatch, "large", 65536, tolerance=0, digits=0, unit="rows")
    write(monkeypatch, "zero", 0.0, tolerance=0)
    write(monkeypatch, "share", 0.33, tolerance=1, digits=0, unit="%")
    assert records.quote("small") == "4.0e-05"
    assert records.quote("share") == "0.33 %"
    assert records.quote("large") == "65,536 rows"
    assert records.quote("zero") == "0.0"


def test_quote_takes_other_decimals_and_devices(monkeypatch):
    write(monkeypatch, "a", 61.34, tolerance=1, unit="%", device="cpu")
    write(monkeypatch, "a", 70.06, tolerance=1, unit="%", device="cuda")
    assert records.quote("a") == "61.3 %"
    assert records.quote("a", digits=0) == "61 %"
    assert records.quote("a", device="cuda") == "70.1 %"
    with pytest.raises(ValueError, match="no record named 'b'.*make records"):
        records.quote("b")
    with pytest.raises(ValueError, match="no record named"):
        records.quote("a", device="mps")


def test_prose_that_disagrees_is_found_and_rewritten(monkeypatch):
    write(monkeypatch, "02.r1", 61.34, tolerance=1, unit="%")
    good = "It reaches <!--record:02.r1:0-->61 %<!--/--> and, to a digit, <!--record:02.r1-->61.3 %<!--/-->."
    stale = good.replace(">61 %", ">55 %")
    assert records.wrong_quotes(good) == []
    assert records.wrong_quotes(stale) == ["the text says '55 %' where record 02.r1 says '61 %'"]
    assert records.rewrite_quotes(stale) == good == records.rewrite_quotes(good)
    assert records.rewrite_quotes("no numbers here") == "no numbers here"


def test_a_quote_of_nothing_and_an_open_quote_are_found(monkeypatch):
    write(monkeypatch, "a", 1.0, tolerance=1)
    assert "no record named 'b'" in records.wrong_quotes("<!--record:b-->1<!--/-->")[0]
    assert "not closed" in records.wrong_quotes("<!--record:a-->1.0 and nothing more")[0]
    with pytest.raises(ValueError, match="no record named 'b'"):
        records.rewrite_quotes("<!--record:b-->1<!--/-->")


def test_records_that_nothing_makes_any_more_are_dropped(monkeypatch):
    write(monkeypatch, "a", 1.0, tolerance=1)
    write(monkeypatch, "b", 1.0, tolerance=1)
    assert records.keep_only(["a", "c"]) == ["b"]
    assert list(records.load()) == ["a"]


def test_the_file_is_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("VLNOTES_RECORDS_FILE")
    monkeypatch.chdir(tmp_path)
    here = records.records_file()
    assert here.parts[-2:] == ("data", "records.json")
    assert (here.parents[1] / "vlnotes" / "records.py").exists()
