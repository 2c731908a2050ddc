"""The simulation of many workers, against what can be computed by hand."""

import pytest

from benchmarks.scale_simulation import Cluster, Work, check_fit, main, simulate_fit, simulate_pass

STEADY = Cluster(4, storage_mb_s=100.0, worker_mb_s=50.0, straggling=0, lost_per_hour=0)
IMAGES = 64 * 40  # 40 tasks, ten for each worker


def test_a_pass_without_mishaps_takes_what_its_images_do() -> None:
    seconds, again = simulate_pass(IMAGES, Work(read_mb=0.1, decode_s=0.005, trunk_s=0.010), STEADY)
    assert seconds == pytest.approx(64 * 10 * (0.1 / 25 + 0.015)), "each of four reads 25 MB/s of the 100"
    assert again == 0


def test_a_fit_without_mishaps_takes_its_steps_and_messages() -> None:
    work = Work(head_s=0.001, parameters_mb=8.0)
    seconds, again = simulate_fit(4 * 16 * 100, 3, 16, work, STEADY)
    ring = 2 * 3 / 4 * 8.0 / 1000 + 2 * 3 * 0.0001
    assert seconds == pytest.approx(3 * 100 * (16 * 0.001 + ring))
    assert again == 0


def test_a_slow_step_of_one_is_a_slow_step_of_all() -> None:
    cluster = Cluster(64, link_mb_s=1e12, latency_s=0, straggling=0.5, slow=3.0, lost_per_hour=0)
    seconds, _ = simulate_fit(64 * 100, 1, 1, Work(head_s=1.0), cluster)
    assert seconds == pytest.approx(300)


@pytest.mark.slow
def test_it_is_held_against_processes_of_gloo() -> None:
    measured, simulated = check_fit(2, 20, sleep_s=0.01)
    assert measured >= 20 * 0.01
    assert simulated >= 20 * 0.01


def test_it_prints_what_many_workers_take(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--images", "1e5"])
    told = capsys.readouterr().out
    assert "100,000 images" in told
    assert told.count("CPU cores") == told.count("GPUs") == 4, "a row for each number of workers"
    assert told.count("%") == 8, "how near each comes to the ideal"
