"""What a container lets a process use."""

from seqtune.cpus import available_cpus
from seqtune.models.machine import available_memory


def test_a_container_quota_lowers_the_processors(tmp_path):
    quota = tmp_path / "cpu.max"
    quota.write_text("150000 100000\n")
    assert available_cpus(quota) == min(2, available_cpus(tmp_path / "absent"))
    quota.write_text("max 100000\n")
    assert available_cpus(quota) == available_cpus(tmp_path / "absent")


def test_a_container_limit_lowers_the_memory(tmp_path):
    for name, content in (("max", "3000"), ("current", "1200"), ("stat", "anon 700\ninactive_file 500\nactive_file 0\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert available_memory(tmp_path) == 3000 - 1200 + 500
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) > 2**20
    assert available_memory(tmp_path / "absent") > 2**20
