from puna.serve.waiting import wait_briefly


def test_threads_wait_briefly_unless_somebody_has_said_how_they_wait() -> None:
    said: tuple[dict[str, str], ...] = ({}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"})
    for environment in said:
        wait_briefly(environment)
    assert said == ({"GOMP_SPINCOUNT": "1000"}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"})
