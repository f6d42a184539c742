"""The chemistry pack: structures against RDKit and InChI asked directly, names against OPSIN, rows against plain loops."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time

import polars
import pytest
from rdkit import Chem

from seqtune.chem import baselines, commands, files, inspection, molecules, opsin, pipeline, splits, structures
from seqtune.chem.curation import Curation, curate, rules
from seqtune.chem.isolation import Failure, Workers
from seqtune.cli import main as seqtune_main
from seqtune.errors import ConfigError, DataError
from seqtune.plugins import Verdict
from seqtune.records import Example, Hypothesis, Prediction
from seqtune.scoring.evaluate import evaluate

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java")


def _misbehave(number: int) -> int:
    if number == 3:
        time.sleep(60)
    if number == 5:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number * number


def test_a_molecule_that_hangs_or_crashes_costs_only_itself():
    pool = Workers(num_workers=2, timeout=1.0)
    try:
        found = list(pool.map(_misbehave, range(10), piece=4))
    finally:
        pool.stop()
    assert found == [0, 1, 4, Failure("timeout"), 16, Failure("crash"), 36, 49, 64, 81]


@pytest.mark.parametrize(
    ("ours", "theirs", "levels"),
    [
        ("OCC", "CCO", (True, True, True)),
        ("N[C@@H](C)C(=O)O", "C[C@H](N)C(=O)O", (True, True, True)),
        ("C[C@@H](N)C(=O)O", "C[C@H](N)C(=O)O", (False, False, True)),
        ("CC(N)C(=O)O", "C[C@H](N)C(=O)O", (False, False, True)),
        ("[13CH3]CO", "CCO", (False, False, True)),
        ("Oc1ccccn1", "O=c1cccc[nH]1", (False, True, True)),  # tautomers
        ("CCCO", "CC(C)O", (False, False, False)),
        ("CCO", "CCN", (False, False, False)),
        ("[Na+].[Cl-]", "[Cl-].[Na+]", (True, True, True)),
    ],
)
def test_levels_of_likeness(ours, theirs, levels):
    found = molecules.compare((ours, theirs))
    assert (found.fixed_hydrogens, found.structure, found.skeleton) == levels
    first, second = (Chem.MolToInchi(Chem.MolFromSmiles(s)) for s in (ours, theirs))
    assert found.structure == (first == second)


def test_what_is_no_molecule_is_unreadable():
    for text in ("", "C1CC", "hello", "C" * 5000, "c1cccc1", "\x00"):
        assert molecules.parse(text) is None
        assert not molecules.compare((text, "CCO")).readable
        assert set(molecules.describe(text).values()) == {"unreadable"}


def test_skeletons_and_scaffolds_keep_relatives_together():
    same = ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "CC([NH3+])C(=O)[O-]", "[Na+].CC(N)C(=O)[O-]", "[2H]C(N)(C)C(=O)O"]
    assert len({molecules.skeleton(s) for s in same}) == 1
    inchi_key = Chem.MolToInchiKey(Chem.MolFromSmiles("CC(N)C(=O)O"))
    assert molecules.skeleton(same[0]) == inchi_key.partition("-")[0]
    assert molecules.scaffold("CCc1ccccc1O") == molecules.scaffold("Cc1ccccc1.Cl") == "c1ccccc1"
    assert molecules.scaffold("CCO") != molecules.scaffold("CCCO")  # acyclic molecules stand alone


def test_both_directions_of_a_molecule_fall_on_the_same_side():
    rows = [("CCO", "ethanol"), ("c1ccccc1", "benzene"), ("nonsense", "unknown"), ("OCC", "ethyl alcohol")]
    forward = [Example(str(i), s, n) for i, (s, n) in enumerate(rows)]
    backward = [Example(str(i), n, s) for i, (s, n) in enumerate(rows)]
    keys = splits.skeletons(forward)
    assert keys == splits.skeletons(backward)
    assert keys[0] == keys[3] != keys[1]
    assert keys[2] == "nonsense"  # what cannot be read is a group of its own
    assert splits.scaffolds(forward)[1] == "c1ccccc1"
    assert splits.neighbours(forward[:2], [Example("9", "OCC", "x"), Example("10", "CCCO", "y")])[0] == 1.0


DROPPED_BY = {
    "open": {
        "C[C@H](O": "SMILES cannot be read",
        "CCO.Cl": "several fragments",
        "[2H]CCO": "isotopes",
        "CC[SeH]": "elements other than H B C N O F Si P S Cl Br I",
        "CC[NH3+]": "charged",
        "CO": "heavy atoms outside 3-50",
        "C" * 51: "heavy atoms outside 3-50",
    },
    "paper": {
        "c1ccc2ccccc2c1CCCCC.Cl": "several fragments",
        "CCCCCCC1CCCCC1I": "elements other than H C N O S F Cl Br",
        "O=[N+]([O-])C1CCCCC1CCCCC": "nitro",
        "O=NC1CCCCC1CCCCCC": "nitroso",
        "C1CCCCC1": "molecular weight outside 150-550",
        "CCCCCCCCCCCCCC": "no ring",
        "c1ccc2ccccc2c1C": "molecular weight outside 150-550",
        "Cc1ccc(-c2ccc(C)cc2)cc1": "fsp3 below 0.3",
        "C(c1ccccc1)(c1ccccc1)(c1ccccc1)CCCCCCCCCC": "more than 2 phenyl rings",
    },
}
PASSES = {"open": "CC(C)C[N+](=O)[O-]", "paper": "CCCCCCCC1CCC(c2ccccc2)CC1"}


@pytest.mark.parametrize("preset", ["open", "paper"])
def test_every_rule_drops_what_it_names(preset):
    curation = Curation(preset, verify_names=False)
    for smiles, rule in DROPPED_BY[preset].items():
        assert curate(curation, [(smiles, "name")])[0].rule == rule, smiles
    assert curate(curation, [(PASSES[preset], "name")])[0].rule is None
    untested = set(rules(preset)) - set(DROPPED_BY[preset].values())
    assert untested <= {"isotopes", "more than 4 aromatic rings"}


@needs_java
def test_the_open_preset_wants_names_that_mean_the_molecule():
    rows = [("CCO", "ethanol"), ("CCO", "propanol"), ("CCO", "gibberish"), ("CC(=O)[O-].[Na+]", "sodium;acetate")]
    assert [o.rule for o in curate(Curation(), rows)] == [
        None, "name not verified by OPSIN", "name not verified by OPSIN", "several fragments",
    ]  # fmt: skip


def test_forms_of_a_smiles_are_the_same_molecule():
    smiles = "OC(=O)c1ccccc1OC(C)=O"
    key = Chem.MolToInchiKey(Chem.MolFromSmiles(smiles))
    row = curate(Curation("none", "kekule", num_random=3, selfies=True), [(smiles, "aspirin")])[0]
    assert "c" not in row.smiles
    assert len(row.inputs) == len(set(row.inputs)) == 4
    for form in (row.smiles, *row.inputs):
        assert Chem.MolToInchiKey(Chem.MolFromSmiles(form)) == key
    assert row.selfies.startswith("[")
    assert row == curate(Curation("none", "kekule", num_random=3, selfies=True), [(smiles, "aspirin")])[0]
    given = curate(Curation("none", "given"), [(smiles, "aspirin")])[0]
    assert given.smiles == smiles


def random_table(path, number: int) -> list[tuple[int, str, str]]:
    """Rows with unreadable ones and repeats of SMILES and names."""
    rng = random.Random(1)
    parts = ["C", "CC", "O", "N", "C(=O)", "c1ccccc1", "Cl", "("]
    rows = [
        (i, "".join(rng.choices(parts, k=rng.randrange(2, 6))), f"name {rng.randrange(number)}") for i in range(2, number + 2)
    ]
    polars.DataFrame(rows, schema=["cid", "smiles", "iupac"], orient="row").drop("cid").write_csv(path)
    return rows


def expected_rows(rows):
    """The plain loop: canonical, the first of each SMILES, then the first of each name."""
    kept, seen, names = [], set(), set()
    for cid, smiles, name in rows:
        mol = Chem.MolFromSmiles(smiles)
        text = mol and Chem.MolToSmiles(mol)
        if text and text not in seen:
            seen.add(text)
            if name not in names:
                names.add(name)
                kept.append((cid, text, name))
    return kept


@pytest.mark.parametrize("part", [64, 2**21])
def test_a_curated_table_equals_a_plain_loop_and_accounts_for_every_row(tmp_path, monkeypatch, part):
    monkeypatch.setattr(pipeline, "PART", part)
    monkeypatch.setattr(pipeline, "PIECE", 37)
    rows = random_table(tmp_path / "in.csv", 600)
    out = tmp_path / "out.parquet"
    counts = commands.molecules(tmp_path / "in.csv", out, "none", smiles_form="canonical")
    found = polars.read_parquet(out)
    assert found.rows() == expected_rows(rows)
    dropped = polars.read_parquet(tmp_path / "out.parquet.dropped.parquet")
    assert sorted([*found["cid"], *dropped["cid"]]) == [cid for cid, _, _ in rows]
    assert counts["kept"] == found.height
    by_rule = dict(dropped["rule"].value_counts().iter_rows())
    assert by_rule == {k: v for k, v in counts.items() if k in by_rule}
    assert counts["rows"] == 600 == counts["kept"] + sum(by_rule.values())


def test_nothing_kept_and_other_kinds_are_refused(tmp_path):
    (tmp_path / "in.csv").write_text("smiles,iupac\nC1CC,x\n")
    with pytest.raises(DataError, match="no row is kept; .*SMILES cannot be read: 1"):
        commands.molecules(tmp_path / "in.csv", tmp_path / "out.csv", "paper")
    assert not (tmp_path / "out.csv").exists()
    with pytest.raises(ConfigError, match=r"must end in \.csv, \.tsv, \.parquet"):
        commands.molecules(tmp_path / "in.csv", tmp_path / "out.txt", "paper")
    with pytest.raises(ConfigError, match="give SDF files"):
        commands.pubchem(tmp_path / "o.csv", name_style="traditional")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.csv"]


SDF = """{cid}
  -OEChem-

  0  0  0     0  0  0  0  0  0999 V2000
M  END
> <PUBCHEM_COMPOUND_CID>
{cid}

> <PUBCHEM_IUPAC_NAME>
{name}

> <PUBCHEM_IUPAC_TRADITIONAL_NAME>
trivial {name}

> <PUBCHEM_SMILES>
{smiles}

$$$$
"""


def test_an_sdf_gives_any_style_of_name(tmp_path):
    path = tmp_path / "c.sdf"
    path.write_text(SDF.format(cid=7, name="ethanol", smiles="CCO") + SDF.format(cid=9, name="", smiles="C"))
    counts = commands.pubchem(tmp_path / "o.csv", "none", sdf=[path], name_style="traditional")
    assert counts["kept"] == 2
    assert polars.read_csv(tmp_path / "o.csv").rows() == [(7, "CCO", "trivial ethanol"), (9, "C", "trivial")]
    counts = commands.pubchem(tmp_path / "p.csv", "none", sdf=[path])
    assert counts == {"records in c.sdf": 2, "no SMILES or no preferred name": 1, "kept": 1}


@needs_java
class TestNames:
    def test_opsin_answers_in_order_and_survives(self, monkeypatch):
        reader = opsin.Opsin()
        try:
            names = ["ethanol", "nonsense", "", "propan–2–ol", "sodium;acetate", "x" * 3000, "benzene"]
            assert reader.read(names) == ["C(C)O", "", "", "CC(C)O", "C(C)(=O)[O-].[Na+]", "", "C1=CC=CC=C1"]
            reader.process.kill()
            monkeypatch.setattr(reader, "known", {})
            assert reader.read(["ethanol", "methanol"])[1] == "CO"
        finally:
            reader.close()

    def test_verdicts(self):
        asked = [
            ("CCO", "ethanol"), ("C[C@H](N)C(=O)O", "2-aminopropanoic acid"), ("CCO", "methanol"), ("CCO", "ethanole-3"),
            ("C1CC", "ethanol"),
        ]  # fmt: skip
        found = structures.verdicts(*zip(*asked, strict=True))
        assert [v.status for v in found] == ["verified", "skeleton_only", "mismatch", "unparsed", "not_checked"]
        assert [v.verified for v in found] == [True, False, False, False, False]
        assert found[0].detail == "C(C)O"

    def test_a_smiles_is_verified_by_what_opsin_reads_from_the_name(self):
        found = structures.StructureVerifier().verify(
            ["ethanol", "ethanol", "ethanol", "gibberish"], ["OCC", "CO", "C1CC", "CCO"]
        )
        assert [v.status for v in found] == ["verified", "mismatch", "unparsed", "not_checked"]

    def test_scores_cover_all_items_with_ceiling_and_baselines(self):
        rows = [("CCO", "ethanol", "ethanol"), ("CCCO", "propan-2-ol", "propan-1-ol"), ("CCN", "???", "ethanamine")]
        predictions = [Prediction(str(i), s, r, p, 0.0, (), "ok") for i, (s, p, r) in enumerate(rows)]
        metrics = evaluate(predictions, structures.NameMetrics(), [("CCCCO", "butan-1-ol")])
        assert metrics["structure_accuracy"]["value"] == pytest.approx(1 / 3)
        assert "opsin:2." in metrics["structure_accuracy"]["signature"]
        assert metrics["gold_ceiling"]["structure_accuracy"]["value"] == 1.0
        assert metrics["items"]["structure"] == ["verified", "mismatch", "unparsed"]
        tools = metrics["baselines"]
        assert [name.split()[0] for name in tools] == ["openclatura", "nearest"]
        assert tools["nearest training molecule"]["exact_match"]["value"] == 0.0
        assert next(iter(tools.values()))["structure_accuracy"]["value"] == 1.0
        assert [row["label"] for row in metrics["strata"]["heavy atoms"]] == ["0-10"]


def test_without_java_nothing_is_called_wrong(monkeypatch, capsys):
    monkeypatch.setattr(opsin.shutil, "which", lambda name: None)
    opsin.living.cache_clear()
    assert [v.status for v in structures.verdicts(["CCO"], ["ethanol"])] == ["not_checked"]
    assert "apt install default-jre-headless" in capsys.readouterr().err
    metrics = evaluate([Prediction("1", "CCO", "ethanol", "ethanol", 0.0, (), "ok")], structures.NameMetrics())
    assert "structure_accuracy" not in metrics
    assert metrics["exact_match"]["value"] == 1.0
    assert not pipeline.settled(Curation()).verify_names
    opsin.living.cache_clear()


def test_smiles_metrics_against_rdkit():
    inputs = ["a", "b", "c", "d"]
    found = structures.StructureMetrics().judge(
        inputs, ["OCC", "C[C@@H](N)C(=O)O", "C1CC", "CCCO"], ["CCO", "C[C@H](N)C(=O)O", "CCC", "CCO"]
    )
    values = found.values
    assert values["validity"] == [1, 1, 0, 1]
    assert values["canonical_match"] == values["structure_accuracy"] == [1, 0, 0, 0]
    assert values["skeleton_accuracy"] == [1, 1, 0, 0]
    assert values["morgan_tanimoto"][2] == 0.0
    assert values["morgan_tanimoto_valid"][2] is None
    from rdkit.Chem import AllChem, DataStructs

    prints = [AllChem.GetMorganFingerprintAsBitVect(Chem.MolFromSmiles(s), 2, 2048) for s in ("CCCO", "CCO")]
    assert values["morgan_tanimoto"][3] == pytest.approx(DataStructs.TanimotoSimilarity(*prints))
    assert found.columns["structure"] == ["verified", "skeleton_only", "invalid", "mismatch"]


def test_baselines_look_things_up():
    assert baselines.nearest_answers(["OCC", "C1CC"], [("c1ccccc1", "benzene"), ("CCO", "ethanol")]) == ["ethanol", ""]
    assert baselines.most_similar_answers(["ethanoll"], [("benzene", "c1"), ("ethanol", "CCO")]) == ["CCO"]
    assert baselines.openclatura_names(["CCO", "C1CC"]) == ["ethanol", ""]


def test_odd_inputs_get_a_status():
    asked = {
        "CCO": ("", False), "C1CC": ("invalid_smiles", True), "hello": ("invalid_smiles", True), "CCO>>CC=O": ("reaction", True),
        "*CC": ("r_group", True), "[R1]CC": ("invalid_smiles", True), "[Na+].[Cl-]": ("mixture", False),
        "C" * 500: ("too_large", True), "C" * 5000: ("too_large", True),
    }  # fmt: skip
    found = inspection.smiles(list(asked))
    assert [(i.status, i.refused) for i in found] == list(asked.values())
    names = inspection.names(["ethanol", "propan–2–ol", "α-pinene", "x" * 5000])
    assert [(i.text[:12], i.status, i.refused) for i in names] == [
        ("ethanol", "", False), ("propan-2-ol", "plain_dashes", False), ("α-pinene", "unusual_symbols", False),
        ("x" * 12, "too_large", True),
    ]  # fmt: skip


def test_chemists_files(tmp_path):
    path = tmp_path / "m.smi"
    path.write_text("# comment\nCCO ethanol\n\nc1ccccc1\tbenzene\u2028ring\nC1CC\n", encoding="utf-8")
    assert [(e.id, e.input) for e in files.smi(path)] == [("ethanol", "CCO"), ("benzene\u2028ring", "c1ccccc1"), ("5", "C1CC")]
    writer = Chem.SDWriter(str(tmp_path / "m.sdf"))
    for name, smiles in (("ethanol", "OCC"), ("", "c1ccccc1")):
        mol = Chem.MolFromSmiles(smiles)
        mol.SetProp("_Name", name)
        writer.write(mol)
    writer.close()
    (tmp_path / "m.sdf").write_text((tmp_path / "m.sdf").read_text() + "broken\n\n\nnot a counts line\nM  END\n$$$$\n")
    assert [(e.id, e.input) for e in files.sdf(tmp_path / "m.sdf")] == [("ethanol", "CCO"), ("2", "c1ccccc1"), ("3", "")]


def test_the_grid_draws_every_kind_of_answer(tmp_path):
    from seqtune.chem.draw import grid

    def row(smiles, name, verdict):
        return Prediction("1", smiles, None, name, 0.0, (), "ok", {"verdict": verdict} if verdict else {})

    rows = [
        row("CCO", "ethanol", "verified"), row("CCCO", "a" * 400, "mismatch"), row("C1CC", "", ""), row("ethanol", "CCO", "verified"),
        row("CC(N)C(=O)O", "", "abstained"),
    ]  # fmt: skip
    grid(rows, tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes()[:4] == b"\x89PNG"
    grid(rows, tmp_path / "g.svg")
    assert (tmp_path / "g.svg").read_text().count("<rect") >= 1
    with pytest.raises(ConfigError, match=r"must end in \.png or \.svg"):
        grid(rows, tmp_path / "g.pdf")


def test_score_with_a_task_prints_the_packs_numbers(tmp_path, capsys, monkeypatch):
    path = tmp_path / "p.jsonl"
    rows = [
        {"input": "ethanol", "reference": "CCO", "prediction": "OCC"},
        {"input": "x", "reference": "CCN", "prediction": "C1"},
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setattr(
        "sys.argv", ["seqtune", "score", str(path), "--task", "chem:iupac-to-smiles", "--json", "--no-baselines"]
    )
    with pytest.raises(SystemExit) as end:
        seqtune_main()
    assert end.value.code == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["canonical_match"]["value"] == metrics["validity"]["value"] == 0.5
    assert metrics["exact_match"]["value"] == 0.0
    monkeypatch.setattr("sys.argv", ["seqtune", "score", str(path), "--task", "chem:smiles-to-iupack"])
    with pytest.raises(SystemExit) as end:
        seqtune_main()
    assert end.value.code == 1
    assert "did you mean 'chem:smiles-to-iupac'?" in capsys.readouterr().err


def hypotheses(*pairs):
    return tuple(Hypothesis(text, -float(i), 3, True, verdict) for i, (text, verdict) in enumerate(pairs))


def test_a_verifier_is_judged_by_the_references_alone():
    """Worked by hand: three items, one verified and right, one verified and wrong, one not verified."""
    predictions = [
        Prediction(
            "1", "a", "A", "A", 0.0, hypotheses(("X", "mismatch"), ("A", "verified")), "verified", {"verdict": "verified"}
        ),
        Prediction(
            "2", "b", "B", "Y", 0.0, hypotheses(("Y", "verified"), ("B", "verified")), "verified", {"verdict": "verified"}
        ),
        Prediction(
            "3", "c", "C", "", 0.0, hypotheses(("C", "unparsed"), ("Z", "unparsed")), "abstained", {"verdict": "unparsed"}
        ),
    ]
    report = evaluate(predictions)["verification"]
    value = {key: report[key]["value"] for key in ("coverage", "top1_verified", "found")}
    assert value == pytest.approx({"coverage": 2 / 3, "top1_verified": 1 / 3, "found": 1.0})
    exact = {key: part["value"] for key, part in report["exact_match"].items()}
    assert exact == pytest.approx({"top1": 1 / 3, "returned": 1 / 3, "precision": 1 / 2, "rest": 1.0})


def test_the_best_verified_hypothesis_is_returned():
    from seqtune.decoding.verification import choose

    class Vowels:
        calls = 0

        def verify(self, inputs, candidates):
            self.calls += 1
            return [Verdict("verified", True) if c[0] in "aeiou" else Verdict("mismatch") for c in candidates]

    def item(key, *texts):
        return Prediction(key, "q" + key, None, texts[0] if texts else "", -0.0, hypotheses(*((t, "") for t in texts)), "ok")

    rows = [item("1", "bat", "art", "egg"), item("2", "cat", "dog"), item("3")]
    verifier = Vowels()
    first, second, third = choose(rows, verifier, abstain=False)
    assert verifier.calls == 1
    assert (first.prediction, first.status, first.details["rank"]) == ("art", "verified", "2")
    assert [h.verdict for h in first.hypotheses] == ["mismatch", "verified", "verified"]
    assert (second.prediction, second.status) == ("cat", "unverified")
    assert third is rows[2]
    assert [(p.prediction, p.status) for p in choose(rows[1:2], verifier, abstain=True)] == [("", "abstained")]
