"""The review page: what is listed and drawn, what is kept of verdicts, who is let in."""

from __future__ import annotations

import importlib
import io
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing
from html import unescape
from pathlib import Path

import pytest
from archive import write_record

from ecgad.__main__ import main
from ecgad.bundle import SHIPPED, load
from ecgad.card import write_card
from ecgad.screen import folder, screen
from ecgad.screen.merge import merge

TestClient = pytest.importorskip("starlette.testclient").TestClient
review = importlib.import_module("ecgad.report.review")
SCREEN = importlib.import_module("ecgad.screen")
SAMPLES = Path(__file__).parent.parent / "data/samples"
FILES = ["ludb/38", "ludb/1", "ludb/93", "ptbdb/S0001", "damaged/too_short", "damaged/bad_header"]
HOME = "http://127.0.0.1:8123"
HOSTILE = "<script>alert('x')"


@pytest.fixture(scope="module", autouse=True)
def _no_pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SCREEN, "TOP", 0)
        yield


@pytest.fixture(scope="module")
def screened(tmp_path_factory, ecg):
    """Six sample records and one with a hostile name, screened."""
    place = tmp_path_factory.mktemp("screened")
    (place / "in").mkdir()
    for name in FILES:
        for file in (SAMPLES / name).parent.glob(f"{Path(name).name}.*"):
            shutil.copy(file, place / "in")
    write_record(place / "in", HOSTILE, ecg(1, seed=3, t=1000)[0])
    screen(place / "in", place / "out", workers=1, quiet=True)
    return place


@pytest.fixture
def out(screened, tmp_path):
    """Its results, where nobody has reviewed anything yet."""
    return shutil.copytree(screened / "out", tmp_path / "out")


@pytest.fixture
def client(out):
    return start(out)


def start(out):
    app = review.application(review.Review(out, "Ann"), "token")
    return TestClient(app, base_url=f"{HOME}/token/", headers={"Origin": HOME})


def listed(client, query=""):
    """[(row number, verdict)] of the list, from the top."""
    page = client.get(query).text
    return [(int(n), said) for n, said in re.findall(r'data-n="(\d+)" data-verdict="(.*?)"', page)]


def say(client, n, verdict, note=""):
    return client.post(f"record/{n}", json={"verdict": verdict, "note": note})


def history(out):
    with closing(sqlite3.connect(out / "review.sqlite")) as base:
        return base.execute("SELECT record_id, verdict, note, reviewer FROM verdicts").fetchall()


def number(out, record_id):
    return folder.read_table(out)["record_id"].to_pylist().index(record_id)


def test_the_list_begins_with_the_strangest(client, out):
    rows = folder.read_table(out).to_pylist()
    scored = [n for n, row in enumerate(rows) if row["score"] is not None]
    order = sorted(scored, key=lambda n: (rows[n]["p_value"], -rows[n]["score"]))
    assert [n for n, _ in listed(client)] == order
    flagged = [n for n in order if rows[n]["decision"] == "flagged"]
    assert [n for n, _ in listed(client, "?view=flagged")] == flagged == order[: len(flagged)]
    assert 0 < len(flagged) < len(order)


def test_what_was_not_scored_has_lists_of_its_own(client, out):
    assert listed(client, "?view=not assessable") == [(number(out, "too_short"), "")]
    assert listed(client, "?view=failed") == [(number(out, "bad_header"), "")]
    failed = client.get(f"record/{number(out, 'bad_header')}").text
    assert "is not a record line" in failed
    assert "<img" not in failed


def test_a_long_list_comes_in_pieces(client, monkeypatch):
    every = listed(client)
    monkeypatch.setattr(review, "LISTED", 2)
    assert listed(client) == every[:2]
    later = unescape(re.search(r'id="later" href="(.*?)"', client.get("").text)[1])
    assert listed(client, later) == every[2:4]
    assert f'data-n="{every[3][0]}" data-verdict="" data-note="" class="at"' in (
        client.get(f"?n={every[3][0]}").text
    )


def test_a_record_is_drawn_with_the_model_of_the_screening(client, out):
    for record_id in ("93", "too_short"):
        page = client.get(f"record/{number(out, record_id)}").text
        assert 'src="data:image/png;base64,' in page
        assert f"<figcaption>{record_id}: " in page
        assert "Scored again" not in page
    assert client.get("record/7").status_code == 404


def test_another_score_than_that_of_the_list_is_told(client, out, monkeypatch):
    n = number(out, "93")
    score = folder.read_table(out)["score"][n].as_py()
    found = review.Ranking.rows
    monkeypatch.setattr(
        review.Ranking, "rows", lambda *given: [row | {"score": 9.0} for row in found(*given)]
    )
    page = client.get(f"record/{n}").text
    assert f"the record has {score:.2f}, and not 9.00 as in the list" in page


def test_a_verdict_survives_a_restart(client, out):
    (first, _), (second, _), *_ = listed(client)
    said = say(client, first, "strange", "look at V2").json()
    assert (said["verdict"], said["reviewed"]["scored"], said["reviewed"]["failed"]) == (
        "strange",
        1,
        0,
    )
    again = start(out)
    assert listed(again)[:2] == [(first, "strange"), (second, "")]
    page = again.get("").text
    assert 'data-note="look at V2"' in page
    assert f'data-n="{second}" data-verdict="" data-note="" class="at"' in page  # the first left
    assert '<b id="reviewed">1</b> reviewed, <b id="left">4</b> left' in page


def test_a_verdict_does_not_pass_to_another_recording_in_its_place(out):
    n = number(out, "93")
    row = folder.read_table(out).to_pylist()[n]
    review.Verdicts(out).add(row | {"source_sha256": "of another"}, "strange", "", "Ann")
    assert (n, "") in listed(start(out))


def test_undo_brings_back_what_was_said_before(client):
    n, _ = listed(client)[0]
    say(client, n, "strange", "sure")
    say(client, n, "cannot tell")
    undone = client.post("undo").json()
    assert (undone["n"], undone["view"]) == (n, "scored")
    assert (undone["verdict"], undone["note"]) == ("strange", "sure")
    assert listed(client)[0] == (n, "strange")
    assert client.post("undo").json()["reviewed"]["scored"] == 0
    assert client.post("undo").json()["n"] is None


def test_nothing_that_was_said_is_written_over(client, out):
    n = number(out, "93")
    say(client, n, "strange")
    say(client, n, "nothing strange", "on second thoughts")
    client.post("undo")
    assert history(out) == [
        ("93", "strange", "", "Ann"),
        ("93", "nothing strange", "on second thoughts", "Ann"),
        ("93", "strange", "", "Ann"),
    ]


def test_only_verdicts_that_there_are_are_taken(client, out):
    assert say(client, 0, "normal").status_code == 400
    assert say(client, 7, "strange").status_code == 400
    assert history(out) == []


def test_a_record_that_changed_since_is_not_drawn(screened, out, tmp_path):
    archive = screened / "in"
    n, before = number(out, "38"), (archive / "38.hea").read_bytes()
    try:
        (archive / "38.hea").write_bytes(before + b"# a comment\n")
        page = start(out).get(f"record/{n}").text
        (archive / "38.hea").unlink()
        gone = start(out).get(f"record/{n}").text
    finally:
        (archive / "38.hea").write_bytes(before)
    assert "38.hea has changed since it was screened: its sha256 was " in page
    assert "38.hea: there is no such file" in gone
    assert "<img" not in page + gone
    assert "<img" in start(out).get(f"record/{n}").text


@pytest.mark.parametrize("path", ["", "wrong/", "wrong/record/0", "tokens/", "wrong/review.csv"])
def test_an_address_without_the_token_is_refused(client, path):
    assert client.get(f"{HOME}/{path}").status_code == 403
    assert client.get(f"{HOME}/token/").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8123", "127.0.0.1.evil.example"])
def test_another_name_for_this_machine_is_refused(client, host):
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert client.get("", headers=headers).status_code == 400
    assert client.post("undo", headers=headers).status_code == 400


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null", None])
def test_a_verdict_from_another_page_is_refused(client, out, origin):
    client.headers.pop("Origin")
    headers = {} if origin is None else {"Origin": origin}
    body = {"verdict": "strange", "note": ""}
    assert client.post("record/0", json=body, headers=headers).status_code == 403
    assert history(out) == []


def test_names_and_notes_are_text_and_nothing_else(client, out):
    n = number(out, HOSTILE)
    say(client, n, "strange", '"><script>alert(2)</script>')
    for page in (client.get("").text, client.get(f"record/{n}").text):
        assert "&lt;script&gt;alert(&#39;x&#39;)" in page or "&lt;script&gt;alert(&#x27;" in page
        assert not re.search(r"<script(?! nonce=)", page)


def test_the_browser_is_told_to_fetch_nothing(client):
    answer = client.get("")
    policy = answer.headers["Content-Security-Policy"]
    nonce = re.search(r'<script nonce="(.+?)">', answer.text)[1]
    assert "default-src 'none'" in policy
    assert f"script-src 'nonce-{nonce}'" in policy
    assert "http" not in policy
    assert not re.search(r"https?://|@import|url\(|src=(?!\"data:)", answer.text)


def test_no_page_calls_a_record_normal_or_names_a_finding(client):
    pages = [client.get("").text, *(client.get(f"record/{n}").text for n in range(7))]
    assert not re.search(r"\b(ab)?normal", " ".join(pages), flags=re.IGNORECASE)


def test_the_csv_holds_the_newest_verdict_of_each_record(client, out):
    pandas = pytest.importorskip("pandas")
    with client:
        say(client, number(out, "93"), "strange")
        say(client, number(out, "93"), "cannot tell", 'noise, "V2"\nand V3')
        say(client, number(out, "38"), "nothing strange")
        say(client, number(out, "1"), "strange")
        client.post("undo")
        sent = client.get("review.csv")
        assert not (out / "review.csv").exists()
    assert (out / "review.csv").read_text() == sent.text  # written on stopping
    table = pandas.read_csv(io.StringIO(sent.text), dtype={"record_id": str})
    assert list(table["record_id"]) == ["93", "38"]
    assert list(table["verdict"]) == ["cannot tell", "nothing strange"]
    assert table["note"][0] == 'noise, "V2"\nand V3'
    assert pandas.to_datetime(table["time"]).dt.tz is not None
    rows = {row["path"]: row["source_sha256"] for row in folder.read_table(out).to_pylist()}
    assert all(
        rows[path] == sha for path, sha in zip(table["path"], table["source_sha256"], strict=True)
    )


@pytest.fixture
def model(tmp_path):
    """One that is not shipped."""
    shutil.copytree(SHIPPED, tmp_path / "model")
    write_card(load().card | {"id": "other"}, tmp_path / "model")
    return tmp_path / "model"


def test_merged_shards_are_reviewed_as_one(screened, tmp_path, model):
    for i in "12":
        screen(screened / "in", tmp_path / i, model=model, shard=f"{i}/2", workers=1, quiet=True)
    merge([tmp_path / "1", tmp_path / "2"], tmp_path / "all")
    client = start(tmp_path / "all")
    assert listed(client) == listed(start(screened / "out"))
    assert len(listed(client, "?view=failed")) == 1
    n, _ = listed(client)[0]
    page = client.get(f"record/{n}").text  # drawn with the model that the command names
    assert "<img" in page
    shutil.rmtree(model)
    page = start(tmp_path / "all").get(f"record/{n}").text
    assert f"is not in {model}" in page
    assert "<img" not in page


def test_a_screening_calibrated_by_its_site_is_drawn_with_its_own_model(tmp_path, ecg):
    for i, mv in enumerate(ecg(20, seed=5, t=1000)):
        write_record(tmp_path / "in", f"r{i:02d}", mv)
    screen(tmp_path / "in", tmp_path / "out", recalibrate=tmp_path / "in", workers=1, quiet=True)
    client = start(tmp_path / "out")
    rows = sorted(folder.read_table(tmp_path / "out").to_pylist(), key=lambda row: -row["score"])
    shown = re.findall(r'class="id">(\w+)', client.get("").text)
    assert shown == [row["record_id"] for row in rows]  # of three parts
    n, _ = listed(client)[-1]
    page = client.get(f"record/{n}").text
    assert f"<figcaption>{shown[-1]}: " in page
    assert "Scored again" not in page
    shutil.rmtree(tmp_path / "out/model")
    page = start(tmp_path / "out").get(f"record/{n}").text
    assert "the model of this screening, mmae-12lead-site (" in page
    assert "<img" not in page


def test_without_the_extra_it_is_told_what_to_install(out, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "starlette", None)
    for name in [name for name in sys.modules if name.startswith("starlette.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "ecgad.report.review")
    with pytest.raises(SystemExit) as exit:
        main(["review", str(out)])
    said = capsys.readouterr()
    assert (exit.value.code, said.out) == (1, "")
    assert said.err == "ecgad: the review page needs starlette: pip install 'ecgad[review]'\n"


def test_no_other_machine_is_answered():
    with review._listening(0) as door:
        assert door.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_told(out, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as exit:
            main(["review", str(out), "--no-browser", "--port", str(port)])
    assert exit.value.code == 2
    assert f"port {port} cannot be had" in capsys.readouterr().err


def test_the_command_prints_an_address_of_this_machine_and_ends_with_ctrl_c(out):
    command = [sys.executable, "-m", "ecgad", "review", str(out), "--no-browser"]
    with subprocess.Popen(
        [*command, "--reviewer", "Bob"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        address = process.stdout.readline().strip()
        try:
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22}/", address)
            with urllib.request.urlopen(address, timeout=30) as answer:
                assert b"ecgad review" in answer.read()
            request = urllib.request.Request(
                f"{address}record/0",
                b'{"verdict": "strange", "note": ""}',
                {"Origin": address[:-24]},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.status == 200
        finally:
            process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=30)
    assert (process.returncode, rest, err) == (0, "", "")
    assert [row[3] for row in history(out)] == ["Bob"]
    assert (out / "review.csv").read_text().count("\n") == 2


@pytest.mark.parametrize("body", [b"{}", b"[1]", b"x", b'{"verdict": "sick", "note": ""}'])
def test_what_is_no_verdict_is_refused(client, out, body):
    assert client.post("record/0", content=body).status_code == 400
    assert history(out) == []


def test_relative_paths_are_from_where_the_screening_was_started(ecg, tmp_path, monkeypatch):
    write_record(tmp_path / "home/in", "r", ecg(1, seed=3, t=5000)[0])
    monkeypatch.chdir(tmp_path / "home")
    screen("in", tmp_path / "out", workers=1, quiet=True)
    monkeypatch.chdir(tmp_path)
    assert "<figcaption>r: " in start(tmp_path / "out").get("record/0").text
