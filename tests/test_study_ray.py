"""A study on Ray, for real: its jobs as tasks on this machine, folders that travel, and a task that fails."""

import importlib.util
from pathlib import Path

import pytest
from rich.console import Console

from compress_aug.errors import WorkError
from compress_aug.study import ResultsFile, conduct, load_study
from compress_aug.study.ray_launch import pack, unpack


def test_a_folder_travels_whole_and_nothing_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "run" / "kept").mkdir(parents=True)
    (tmp_path / "run" / "kept" / "a.yaml").write_text("x: 1\n")
    packed = pack(tmp_path / "run")
    unpack(packed, tmp_path / "there" / "run")
    assert (tmp_path / "there" / "run" / "kept" / "a.yaml").read_text() == "x: 1\n"
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["run"]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray is not there: pip install "compress-aug[ray]"'
)
# Ray warns of its own parts.
@pytest.mark.filterwarnings("default")
def test_a_study_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from compress_aug.study.ray_launch import on_ray

    monkeypatch.chdir(tmp_path)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        launch = on_ray("local", "cpu")
        study = load_study("paper/fig4_inherit_prune", preset="micro")
        results = ResultsFile.of(study, tmp_path / "results")

        def conducted(launched):
            return conduct(
                study,
                out=tmp_path / "out",
                results=results,
                launch=launched,
                at_once=9,
                console=Console(quiet=True),
            )

        def without_one(recipe, folder, start, log):
            if folder.name.startswith("b_60"):
                # As an unknown model would end: told, and nothing else stops.
                recipe.write_text(recipe.read_text().replace("resnet8", "resnet_none"))
            return launch(recipe, folder, start, log)

        with pytest.raises(WorkError, match=r"b_60-0: .*resnet_none"):
            conducted(without_one)
        assert {run.variant for run in results.read().runs} == {"ours_60", "a_60"}
        found = {run.variant: run.figures for run in conducted(launch)}
        assert found["a_60"].nonzero_parameters == found["ours_60"].nonzero_parameters
    finally:
        ray.shutdown()
