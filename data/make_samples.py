"""Build data/samples from copies of the public databases. The same input gives the same bytes.

    python data/make_samples.py ROOT [OUT]

ROOT holds ludb/data, brugada_huca/files, challenge2021/<source>, cpsc2018, mitdb and ptbdb_sample,
each with the publisher's files, and a labels.csv in all but mitdb. data/README.md has the origins,
the licences and what was changed.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

LUDB_NORMAL = (142, 152, 187, 194, 198, 199)
LUDB_OTHER = (1, 7, 8, 10, 13, 21, 24, 26, 33, 34, 35, 38, 40, 45, 57, 93, 117, 132)
BRUGADA = (267628, 292666, 316872, 325231)  # normal
BRUGADA += (188981, 267630, 317547, 406008, 428031, 460919, 471727, 958460)
CHALLENGE = {
    "CPSC_Extra": ("Q0001", "Q0003", "Q0010", "Q0011"),
    "ChapmanShaoxing_Ningbo": ("JS00001", "JS00008", "JS45542", "JS45543"),
    "G12EC": ("E00001", "E00002", "E00005", "E00007"),
    "PTBXL": ("HR00001", "HR00002", "HR00003", "HR00008"),
}
CPSC = ("A0029", "A0041", "A0003", "A0022", "A0045", "A0054", "A0008")
MITDB, MITDB_FROM_S, MITDB_SECONDS = "208", 300, 60
PTBDB = "S0001"
BASE = 152  # the LUDB record that the damaged ones are made from

SNOMED = {
    "164861001": "myocardial ischaemia",
    "164865005": "myocardial infarction",
    "164867002": "old myocardial infarction",
    "164873001": "left ventricular hypertrophy",
    "164889003": "atrial fibrillation",
    "164890007": "atrial flutter",
    "164930006": "ST interval abnormal",
    "164934002": "T wave abnormal",
    "164951009": "abnormal QRS",
    "13640000": "fusion beats",
    "233897008": "atrioventricular reentrant tachycardia",
    "233917008": "atrioventricular block",
    "251146004": "low QRS voltages",
    "270492004": "first degree atrioventricular block",
    "39732003": "left axis deviation",
    "425856008": "paroxysmal ventricular tachycardia",
    "426177001": "sinus bradycardia",
    "426783006": "sinus rhythm",
    "427084000": "sinus tachycardia",
    "427172004": "premature ventricular contractions",
    "428750005": "nonspecific ST-T abnormality",
    "429622005": "ST depression",
    "55930002": "ST changes",
    "59118001": "right bundle branch block",
    "59931005": "T wave inversion",
}
BRUGADA_LABELS = {
    "brugada": {"1": "Brugada (code 1)", "2": "Brugada (code 2)"},  # the publisher's codes
    "basal_pattern": {"1": "pathological baseline ECG"},
    "sudden_death": {"1": "sudden death"},
}


def main(root: Path, out: Path) -> None:
    if out.exists():
        shutil.rmtree(out)
    rows = [*ludb(root / "ludb", out), *brugada(root / "brugada_huca", out)]
    rows += [*challenge(root / "challenge2021", out), *cpsc(root / "cpsc2018", out)]
    rows += [*mitdb(root / "mitdb", out), *ptbdb(root / "ptbdb_sample", out)]
    rows += damaged(root / "ludb", out)
    with (out / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "record_id", "source", "normal", "label", "subject"])
        table.writerows(rows)
    write_checksums(out)


def ludb(root: Path, out: Path) -> list[list[str]]:
    """Signals as published; one common gain in the headers, and one original header to compare."""
    labels = read_labels(root, "record")
    rows = []
    for number in sorted(LUDB_NORMAL + LUDB_OTHER):
        name = str(number)
        row = labels[name]
        copy(root / "data", out / "ludb", f"{name}.dat")
        write(out / "ludb" / f"{name}.hea", corrected_header(root, name))
        normal = str(int(row["normal"] == "True"))
        rows.append([f"ludb/{name}.hea", name, "LUDB", normal, row["dx"], f"ludb-{name}"])
    copy(root / "data", out / "ludb_original_header", "1.hea", "1.dat")
    note = "as ludb/1, with the published gains, which differ from lead to lead"
    rows.append(["ludb_original_header/1.hea", "1", "LUDB", "0", note, "ludb-1"])
    copy(root, out / "ludb", "LICENSE.txt")
    return rows


def corrected_header(root: Path, name: str) -> bytes:
    """Counts of LUDB are one common unit, near 1 uV: II = I + III holds in them exactly."""
    lines = (root / "data" / f"{name}.hea").read_bytes().split(b"\n")
    for i in range(1, 13):
        words = lines[i].split(b" ")
        words[2] = b"1000(0)/mV"
        lines[i] = b" ".join(words)
    return b"\n".join(lines)


def brugada(root: Path, out: Path) -> list[list[str]]:
    labels = read_labels(root, "patient_id")
    rows = []
    for number in BRUGADA:
        name = str(number)
        copy(root / "files" / name, out / "brugada_huca", f"{name}.hea", f"{name}.dat")
        row = labels[name]
        found = [words[row[key]] for key, words in BRUGADA_LABELS.items() if row[key] in words]
        label = ", ".join(found) or "investigated, Brugada not diagnosed"
        path = f"brugada_huca/{name}.hea"
        rows.append([path, name, "Brugada-HUCA", row["normal"], label, f"huca-{name}"])
    copy(root, out / "brugada_huca", "LICENSE.txt")
    return rows


def challenge(root: Path, out: Path) -> list[list[str]]:
    labels = read_labels(root, "record")
    rows = []
    for source, names in CHALLENGE.items():
        for name in names:
            copy(root / source, out / "challenge2021", f"{name}.hea", f"{name}.mat")
            codes = labels[name]["dx_snomed"].split(",")
            label = ", ".join(f"{SNOMED[code]} ({code})" for code in codes)
            path = f"challenge2021/{name}.hea"
            rows.append([path, name, source, labels[name]["normal"], label, name])
    return rows


def cpsc(root: Path, out: Path) -> list[list[str]]:
    labels = read_labels(root, "record")
    rows = []
    for name in CPSC:
        copy(root, out / "cpsc2018", f"{name}.hea", f"{name}.mat")
        normal = str(int(labels[name]["normal"] == "True"))
        path = f"cpsc2018/{name}.hea"
        rows.append([path, name, "CPSC2018", normal, labels[name]["dx"], name])
    return rows


def mitdb(root: Path, out: Path) -> list[list[str]]:
    """A minute of one record in format 212, with the annotations of that minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wfdb
    start, end = MITDB_FROM_S * 360, (MITDB_FROM_S + MITDB_SECONDS) * 360
    source = str(root / MITDB)
    record = wfdb.rdrecord(source, sampfrom=start, sampto=end, physical=False)
    marks = wfdb.rdann(source, "atr", sampfrom=start, sampto=end - 1, shift_samps=True)
    name, folder = f"{MITDB}_from_{MITDB_FROM_S}s", out / "mitdb"
    folder.mkdir(parents=True)
    wfdb.wrsamp(
        name,
        fs=360,
        units=["mV", "mV"],
        sig_name=record.sig_name,
        d_signal=record.d_signal,
        fmt=["212", "212"],
        adc_gain=record.adc_gain,
        baseline=record.baseline,
        write_dir=str(folder),
    )
    wfdb.wrann(
        name, "atr", marks.sample, symbol=marks.symbol, aux_note=marks.aux_note, write_dir=folder
    )
    label = "ventricular and fusion beats, ventricular trigeminy, among sinus beats"
    return [[f"mitdb/{name}.hea", name, "MIT-BIH", "0", label, f"mitdb-{MITDB}"]]


def ptbdb(root: Path, out: Path) -> list[list[str]]:
    copy(root, out / "ptbdb", f"{PTBDB}.hea", f"{PTBDB}.mat")
    label = "myocardial infarction (the header's own label, sinus rhythm, is incomplete)"
    return [[f"ptbdb/{PTBDB}.hea", PTBDB, "PTB", "0", label, PTBDB]]


def damaged(root: Path, out: Path) -> list[list[str]]:
    """What archives hold besides good records, made from one that is good."""
    folder = out / "damaged"
    folder.mkdir()
    counts = np.frombuffer((root / "data" / f"{BASE}.dat").read_bytes(), "<i2")
    counts = counts.reshape(-1, 12).T  # (12, 5000), 1 uV
    told = {**damaged_signals(folder, counts), **damaged_headers(folder, counts)}
    copy(root, folder, "LICENSE.txt")
    rows = []
    for file, what in sorted(told.items()):
        name = file.rsplit(".", 1)[0]
        rows.append([f"damaged/{file}", name, "damaged", "", what, f"ludb-{BASE}"])
    return rows


def damaged_signals(folder: Path, counts: np.ndarray) -> dict[str, str]:
    rng = np.random.default_rng(0)
    flat, block, clipped = counts.copy(), counts.copy(), counts.copy()
    flat[LEADS.index("V3")] = 0
    block[:, 1500:2250] = -32768
    clipped[6:] = clipped[6:].clip(-1000, 1000)
    scattered = np.where(rng.random(counts.shape) < 0.01, np.int16(-32768), counts)
    keep = [i for i, lead in enumerate(LEADS) if lead in ("I", "II", *LEADS[6:])]
    save(folder, "flat_lead_v3", flat)
    save(folder, "nan_block", block)
    save(folder, "clipped_v1_to_v6", clipped)
    save(folder, "sentinels_scattered", scattered)
    save(folder, "missing_lead_v3", np.delete(counts, 8, 0), leads=(*LEADS[:8], *LEADS[9:]))
    save(folder, "eight_leads", counts[keep], leads=tuple(LEADS[i] for i in keep))
    save(folder, "too_short", counts[:, :2000])
    save(folder, "truncated", counts)
    data = (folder / "truncated.dat").read_bytes()
    write(folder / "truncated.dat", data[: len(data) * 61 // 100 + 7])
    return {
        "flat_lead_v3.hea": "V3 is 0 throughout",
        "nan_block.hea": "all leads without samples (-32768) from 3.0 to 4.5 s",
        "clipped_v1_to_v6.hea": "V1-V6 cut off at -1 and +1 mV",
        "sentinels_scattered.hea": "1 % of all samples missing (-32768)",
        "missing_lead_v3.hea": "eleven leads, without V3",
        "eight_leads.hea": "I, II, V1-V6, as many devices store; the other four follow from them",
        "too_short.hea": "4 s",
        "truncated.hea": "the signal file ends after 61 %, inside a frame",
    }


def damaged_headers(folder: Path, counts: np.ndarray) -> dict[str, str]:
    """Headers gone wrong; those that still lead to samples share one intact signal file."""
    short = counts[:, :500]
    write(folder / "shared.dat", counts.T.astype("<i2").tobytes())
    good = header("shared", counts)
    told = {
        "unit_uv_called_mv": ("1000(0)/mV", "1(0)/mV", "gain 1/mV where it is 1/uV: x 1000"),
        "unit_mv_called_uv": ("1000(0)/mV", "1000(0)/uV", "uV where it is mV: / 1000"),
        "unit_unknown": ("1000(0)/mV", "1000(0)/furlong", "a unit that is not a voltage"),
        "unit_absent": ("1000(0)/mV", "1000(0)", "no unit"),
        "gain_absent": ("1000(0)/mV", "0", "gain 0: not calibrated"),
        "rate_absent": (" 12 500 5000", " 12", "no sampling rate"),
        "leads_mislabelled": (" 0 II\n", " 0 swap\n", "II and V2 bear each other's name"),
        "lead_named_twice": (" 0 V5\n", " 0 V4\n", "V5 is called V4, so V4 stands twice"),
    }
    for name, (old, new, _) in told.items():
        text = good.replace("shared 12", f"{name} 12").replace(old, new)
        if name == "leads_mislabelled":
            text = text.replace(" 0 V2\n", " 0 II\n").replace(" 0 swap\n", " 0 V2\n")
        write(folder / f"{name}.hea", text.encode())
    wrong = good.replace("shared 12", "checksum_wrong 12").split("\n")
    words = wrong[1].split(" ")
    wrong[1] = " ".join([*words[:6], str(int(words[6]) ^ 1), *words[7:]])
    write(folder / "checksum_wrong.hea", "\n".join(wrong).encode())
    write(folder / "empty_header.hea", b"")
    write(folder / "empty_header.dat", short.T.astype("<i2").tobytes())
    write(folder / "bad_header.hea", b"\x89HEA this was never a header\n?? 12 leads of nothing\n")
    save(folder, "empty_signal", counts)
    write(folder / "empty_signal.dat", b"")
    write(folder / "signal_absent.hea", header("signal_absent", counts).encode())
    write(folder / "header_absent.dat", short.T.astype("<i2").tobytes())
    return {
        **{f"{name}.hea": what for name, (_, _, what) in told.items()},
        "checksum_wrong.hea": "the header's checksum of I is not that of the samples",
        "empty_header.hea": "a header of 0 bytes",
        "bad_header.hea": "no header inside",
        "empty_signal.hea": "a signal file of 0 bytes",
        "signal_absent.hea": "a header without its signal file",
        "header_absent.dat": "a signal file without its header",
    }


def save(folder: Path, name: str, counts: np.ndarray, leads: tuple[str, ...] = LEADS) -> None:
    write(folder / f"{name}.dat", counts.T.astype("<i2").tobytes())
    write(folder / f"{name}.hea", header(name, counts, leads).encode())


def header(name: str, counts: np.ndarray, leads: tuple[str, ...] = LEADS) -> str:
    lines = [f"{name} {len(leads)} 500 {counts.shape[1]}"]
    for x, lead in zip(counts, leads, strict=True):
        checksum = int(x.sum(dtype=np.int64).astype(np.int16))
        lines.append(f"{name}.dat 16 1000(0)/mV 16 0 {x[0]} {checksum} 0 {lead}")
    return "\n".join([*lines, f"# made from LUDB record {BASE}; ODC-By 1.0", ""])


def read_labels(folder: Path, key: str) -> dict[str, dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def copy(source: Path, folder: Path, *names: str) -> None:
    for name in names:
        write(folder / name, (source / name).read_bytes())


def write(place: Path, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)


def write_checksums(out: Path) -> None:
    """In the form of `sha256sum --check`."""
    files = sorted(p for p in out.rglob("*") if p.is_file())
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(out).as_posix()}\n"
        for p in files
    ]
    write(out / "SHA256SUMS", "".join(lines).encode())


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(*sys.argv[2:] or [Path(__file__).parent / "samples"]))
