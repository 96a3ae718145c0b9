"""Grid files: what they mean, and that a mistake in one is named with its fix."""

import pytest

from labkit.errors import LabError
from labkit.models.methods import TARGETS, Method
from labkit.models.profiles import PROFILES
from labkit.models.shapes import shape_of
from labkit.paths import data_folder
from labkit.training.grid import Trial, read_grid, trained
from labkit.training.ledger import add_adapters, random_model
from labkit.training.run import adjusted

GRIDS = sorted((data_folder() / "grids").glob("*.toml"))


@pytest.fixture
def grid(tmp_path):
    def write(text, **options):
        path = tmp_path / "grid.toml"
        path.write_text('profile = "tiny"\n' + text, encoding="utf-8")
        return read_grid(path, **options)

    return write


def test_all_combinations_once_each_whatever_the_block(grid):
    trials = grid("[[grid]]\nname='a'\nrank=[2,4]\nlearning_rate=[0.01,0.02]\nseeds=[0,1]\n[[grid]]\nrank=4\nseeds=[0]")
    assert len(trials) == len({trial.id for trial in trials}) == 8
    both = [trial for trial in trials if len(trial.blocks) == 2]
    assert [(t.profile.method.rank, t.profile.learning_rate, t.seed) for t in both] == [(4, 0.01, 0)]
    assert both[0].blocks == ("a", "block 2")


def test_what_is_not_swept_is_the_profile(grid):
    (trial,) = grid("[[grid]]\nseeds=[5]")
    assert trial == Trial(profile=PROFILES["tiny"], seed=5, blocks=("block 1",))
    assert [trial.seed for trial in grid("[[grid]]\nrank=4")] == list(PROFILES["tiny"].seeds)


def test_modules_are_names_or_a_selection_by_score(grid):
    text = "modules=['high 25','low 25','random 25 1','random 25 2','0.q_proj, 3.up_proj']"
    trials = grid(f"order='grid'\n[[grid]]\nseeds=[0]\n{text}")
    modules = [trial.profile.method.modules for trial in trials]
    assert [len(chosen) for chosen in modules] == [7, 7, 7, 7, 2]
    assert len(set(modules)) == 5
    assert set(modules[0]).isdisjoint(modules[1])
    assert trials[4].settings["modules"] == ["0.q_proj", "3.up_proj"]
    for clash in ("targets='all'", "layers='0-1'"):
        with pytest.raises(LabError, match="not both"):
            grid(f"[[grid]]\nmodules='high 25'\n{clash}")


@pytest.mark.parametrize("text", ["high", "high x", "high 25 1", "random 25", "best 25", "high 0", "q_proj"])
def test_a_selection_that_is_none(grid, text):
    with pytest.raises(LabError, match=r"selection is|layer number|share is"):
        grid(f"[[grid]]\nmodules='{text}'")


def test_alpha_follows_the_rank_unless_it_is_given(grid):
    def scales(text):
        trials = grid(f'order="grid"\n[[grid]]\nseeds=[0]\nrank=[4,16]\n{text}')
        return [(t.profile.method.alpha, t.profile.method.scale) for t in trials]

    assert scales("") == [(8, 2), (32, 2)]
    assert scales("scale=0.5") == [(2, 0.5), (8, 0.5)]
    assert scales("alpha=16") == [(16, 4), (16, 1)]
    assert scales("alpha=16\nrslora=true") == [(16, 8), (16, 4)]
    assert scales("scale=2\nrslora=true") == [(4, 2), (8, 2)]


def test_the_effective_factor_is_what_peft_multiplies_with(grid):
    for trial in grid("[[grid]]\nseeds=[0]\nrank=[4,16]\nalpha=16\nrslora=[true,false]"):
        method = trial.profile.method
        model = add_adapters(random_model(shape_of("tiny"), dtype="float32"), method)
        found = {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}
        assert found == {method.scale}


def test_equal_counts_come_out_equal(grid):
    trials = grid("[[grid]]\nseeds=[0]\nparams=544768\ntargets=['attention','mlp','all']\nkind=['lora','dora']")
    counts = [trained(shape_of("tiny"), trial.profile.method) for trial in trials]
    assert len(trials) == 6
    assert max(counts) - min(counts) < 0.05 * 544768
    assert {trial.profile.method.targets for trial in trials} == {TARGETS[:4], TARGETS[4:], TARGETS}
    assert {trial.profile.method.scale for trial in trials} == {2}


def test_a_block_overrides_what_is_shared(grid):
    head = 'order="grid"\n[shared]\nrank=4\nscale=1\nsteps=7\nseeds=[0]\n'
    trials = grid(head + "[[grid]]\nalpha=8\n[[grid]]\nparams=38912\nsteps=9")
    assert [(t.profile.method.rank, t.profile.method.alpha, t.profile.steps) for t in trials] == [(4, 8, 7), (4, 4, 9)]


def test_an_unfinished_sweep_has_every_setting_of_the_first_seeds(grid):
    text = "[[grid]]\nrank=[2,4,8,16]\nseeds=[0,1,2]"
    shuffled, seeds, plain = (grid(f'order="{order}"\n{text}') for order in ("shuffled", "seeds", "grid"))
    for trials in (shuffled, seeds):
        assert [trial.seed for trial in trials] == [0] * 4 + [1] * 4 + [2] * 4
    assert [t.profile.method.rank for t in seeds[:4]] == [2, 4, 8, 16]
    assert [t.seed for t in plain[:3]] == [0, 1, 2]
    assert {t.id for t in shuffled} == {t.id for t in plain}


def test_an_id_says_what_the_numbers_depend_on_and_no_more():
    tiny = PROFILES["tiny"]
    trial = Trial(profile=tiny)
    same = [Trial(profile=tiny, blocks=("x",)), Trial(profile=adjusted(tiny, ranks=(3,), seeds=(7,), alpha=16))]
    other = [
        Trial(profile=tiny, seed=1),
        Trial(profile=adjusted(tiny, rslora=True, alpha=16)),
        Trial(profile=tiny, follow=True),
    ]
    assert {one.id for one in same} == {trial.id}
    assert len({trial.id, *(one.id for one in other)}) == 4
    full = [Trial(profile=adjusted(tiny, kind="full", rank=rank)) for rank in (4, 8)]
    assert full[0].id == full[1].id  # full fine-tuning has no rank


def test_ids_of_shipped_results_do_not_move():
    trial = Trial(profile=adjusted(PROFILES["tiny"], kind="lora", rank=4))
    assert trial.id == "324f580ff177"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[grid]]\nranks=[2]", "grid.1.ranks.*did you mean rank"),
        ("[shared]\nlerning_rate=1e-3\n[[grid]]", "did you mean learning_rate"),
        ("seed=1\n[[grid]]", "seed: a grid has no such key"),
        ("", "grid: it is missing"),
        ("grid=[]", "grid"),
        ("[[grid]]\nrank=[]", "rank"),
        ("[[grid]]\nrank=2.5", "rank.*2.5"),
        ("[[grid]]\nrank=true", "rank.*True"),
        ("[[grid]]\nrank=[0]", r'block "block 1": rank=0.*at least 1'),
        ("[[grid]]\nname='x'\ntargets='q_prj'", 'block "x": .*q_prj'),
        ("[[grid]]\nlayers='3-1'", "neither a layer number nor a range"),
        ("[[grid]]\nlearning_rate=2.0", "below 1"),
        ("[[grid]]\nkind='lore'", "lore"),
        ("[[grid]]\nalpha=1\nscale=1", "not both"),
        ("[[grid]]\nrank=1\nparams=100", "not both"),
        ("[[grid]]\nparams=100", "5 % away"),
        ("[[grid]]\nparams=1000000\nkind='full'", "no rank"),
        ("[[grid]]\nseeds=[-1]", "seeds"),
        ("[[grid]]\nseeds=3", "seeds"),
        ("order='random'\n[[grid]]", "order"),
        ("[[grid]\n", "not TOML"),
    ],
)
def test_a_mistake_is_named(grid, text, message):
    with pytest.raises(LabError, match=message):
        grid(text)


def test_an_unknown_profile_and_a_missing_file(grid, tmp_path):
    with pytest.raises(LabError, match="laptop"):
        grid("[[grid]]", profile="lap")
    with pytest.raises(LabError, match="cannot be read"):
        read_grid(tmp_path / "none.toml")


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_books_grids_can_be_read(path):
    trials = read_grid(path)
    assert trials
    assert {trial.profile.name for trial in trials} == {path.stem.rpartition("_")[2]}


def test_a_default_method_field_is_not_a_part_of_the_settings():
    settings = Trial(profile=PROFILES["tiny"]).settings
    assert not {"rslora", "layers", "block_size", "adapter_dtype"} & settings.keys()
    unusual = Trial(profile=adjusted(PROFILES["tiny"], layers=(1,))).settings
    assert unusual["layers"] == [1]
    assert Method(kind="lora").rslora is False
