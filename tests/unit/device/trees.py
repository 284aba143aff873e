"""Trees of /proc and /sys as files, written from the kernel's documentation; none was recorded on such a machine.

Sources: Documentation/ABI/stable/sysfs-devices-system-cpu and testing/sysfs-devices-system-cpu (topology, cache,
cpu_capacity, thermal_throttle), ABI/testing/sysfs-class-power, ABI/testing/sysfs-class-thermal,
admin-guide/pm/cpufreq.rst, power/powercap/powercap.rst, admin-guide/cgroup-v2.rst, proc(5).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CPU = "sys/devices/system/cpu"
POWER = "sys/class/power_supply"
THERMAL = "sys/class/thermal"
# The node of the system on chip has its address in the name since the Pi 5.
PI5_FIRMWARE = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware"


def write_tree(root: Path, files: Mapping[str, object]) -> Path:
    """Write files below a root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def common(n_cpus: int, *, gigabytes: int = 16) -> dict[str, object]:
    """What every Linux has."""
    everything = f"0-{n_cpus - 1}"
    return {
        f"{CPU}/online": everything,
        "proc/meminfo": f"MemTotal: {gigabytes * 1_000_000} kB\nMemAvailable: {gigabytes * 500_000} kB\n"
        "SwapTotal: 0 kB\nSwapFree: 0 kB",
        "proc/self/status": f"Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t{everything}",
        "proc/self/cgroup": "0::/",
    }


def core(cpus: str, **files: object) -> dict[str, object]:
    """The files of one core's CPUs; a double underscore in a name is a slash."""
    found: dict[str, object] = {}
    first, _, last = cpus.partition("-")
    for cpu in range(int(first), int(last or first) + 1):
        found[f"{CPU}/cpu{cpu}/topology/core_cpus_list"] = cpus
        for name, value in files.items():
            found[f"{CPU}/cpu{cpu}/{name.replace('__', '/')}"] = value
    return found


def cache(cpu: int, index: int, level: int, kind: str, size: str, shared: str) -> dict[str, object]:
    """One cache as one CPU sees it."""
    folder = f"{CPU}/cpu{cpu}/cache/index{index}"
    return {
        f"{folder}/level": level,
        f"{folder}/type": kind,
        f"{folder}/size": size,
        f"{folder}/shared_cpu_list": shared,
    }


def policy(number: int, cpus: str, governor: str, limits_khz: tuple[int, int, int, int]) -> dict[str, object]:
    """One cpufreq policy; limits are current, lowest, highest allowed, highest of the hardware."""
    folder = f"{CPU}/cpufreq/policy{number}"
    names = ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq", "cpuinfo_max_freq")
    return {
        f"{folder}/affected_cpus": cpus,
        f"{folder}/scaling_governor": governor,
        **{f"{folder}/{name}": khz for name, khz in zip(names, limits_khz, strict=True)},
    }


def x86_cpuinfo(name: str, n_cpus: int, flags: str) -> str:
    """The fields that are read of an x86's /proc/cpuinfo."""
    return "\n\n".join(
        f"processor\t: {cpu}\nmodel name\t: {name}\nflags\t\t: fpu sse2 {flags}" for cpu in range(n_cpus)
    )


def arm_cpuinfo(parts: list[str], features: str, end: str = "") -> str:
    """The same of a 64-bit ARM's."""
    return (
        "\n\n".join(
            f"processor\t: {cpu}\nFeatures\t: fp {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}"
            for cpu, part in enumerate(parts)
        )
        + end
    )


def hybrid_laptop(root: Path) -> Path:
    """An Intel laptop: 2 fast cores with two threads each, 4 small ones without; on battery."""
    files = common(8) | {
        "proc/cpuinfo": x86_cpuinfo("12th Gen Intel(R) Core(TM)", 8, "avx2 fma f16c avx_vnni"),
        "sys/devices/cpu_core/cpus": "0-3",
        "sys/devices/cpu_atom/cpus": "4-7",
        "sys/class/dmi/id/product_name": "Thin Laptop 14",
        "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 4000000 0 100",
        f"{CPU}/intel_pstate/no_turbo": 0,
        f"{POWER}/AC/type": "Mains",
        f"{POWER}/AC/online": 0,
        f"{POWER}/BAT0/type": "Battery",
        f"{POWER}/BAT0/scope": "System",
        f"{POWER}/BAT0/capacity": 57,
        f"{POWER}/BAT0/status": "Discharging",
        f"{POWER}/BAT0/current_now": 1_000_000,
        f"{POWER}/BAT0/voltage_now": 11_500_000,
        "sys/class/powercap/intel-rapl:0/name": "package-0",
        "sys/class/powercap/intel-rapl:0/energy_uj": 123456,
        f"{THERMAL}/thermal_zone0/type": "x86_pkg_temp",
        f"{THERMAL}/thermal_zone0/temp": 71000,
        f"{THERMAL}/thermal_zone0/trip_point_0_temp": 100000,
        f"{THERMAL}/thermal_zone0/trip_point_0_type": "critical",
        f"{THERMAL}/thermal_zone0/trip_point_1_temp": 95000,
        f"{THERMAL}/thermal_zone0/trip_point_1_type": "passive",
        f"{THERMAL}/thermal_zone0/trip_point_2_temp": -274000,
        f"{THERMAL}/thermal_zone0/trip_point_2_type": "passive",
        f"{THERMAL}/cooling_device0/type": "Processor",
        f"{THERMAL}/cooling_device0/cur_state": 0,
    }
    files["proc/meminfo"] = (
        "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\nSwapTotal: 4000000 kB\nSwapFree: 3000000 kB"
    )
    for cpus in ("0-1", "2-3"):
        files |= core(
            cpus,
            cpufreq__cpuinfo_max_freq=4_700_000,
            cpu_capacity=1024,
            thermal_throttle__core_throttle_count=2,
        )
    for cpu in range(4, 8):
        files |= core(str(cpu), cpufreq__cpuinfo_max_freq=3_500_000, cpu_capacity=623)
    for cpu in range(8):
        files[f"{CPU}/cpu{cpu}/thermal_throttle/package_throttle_count"] = 5
        files[f"{CPU}/cpu{cpu}/topology/physical_package_id"] = 0
        is_small = cpu >= 4
        own = str(cpu) if is_small else "0-1" if cpu < 2 else "2-3"
        files |= cache(cpu, 0, 1, "Data", "32K" if is_small else "48K", own)
        files |= cache(cpu, 1, 1, "Instruction", "64K" if is_small else "32K", own)
        files |= cache(cpu, 2, 2, "Unified", "2048K" if is_small else "1280K", "4-7" if is_small else own)
        files |= cache(cpu, 3, 3, "Unified", "12288K", "0-7")
    files |= policy(0, "0 1 2 3", "powersave", (2_100_000, 400_000, 2_800_000, 4_700_000))
    files |= policy(4, "4 5 6 7", "powersave", (1_900_000, 400_000, 3_500_000, 3_500_000))
    return write_tree(root, files)


def amd_desktop(root: Path) -> Path:
    """8 cores with two threads each; siblings are 8 apart; two caches of the last level; preferred cores are a bit faster."""
    files = common(16, gigabytes=32) | {
        "proc/cpuinfo": x86_cpuinfo("AMD Ryzen 7", 16, "avx2 fma f16c avx512f avx512vl"),
        f"{CPU}/cpufreq/boost": 1,
        "sys/class/powercap/intel-rapl:0/name": "package-0",
        f"{POWER}/hidpp_battery_0/type": "Battery",
        f"{POWER}/hidpp_battery_0/scope": "Device",
        f"{POWER}/hidpp_battery_0/capacity": 90,
    }
    for cpu in range(16):
        number = cpu % 8
        own = f"{number},{number + 8}"
        files[f"{CPU}/cpu{cpu}/topology/thread_siblings_list"] = own
        files[f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq"] = 5_400_000 - 20_000 * number
        files |= cache(cpu, 0, 1, "Data", "32K", own)
        files |= cache(cpu, 3, 3, "Unified", "32M", "0-3,8-11" if number < 4 else "4-7,12-15")
    for node, cpus in enumerate(("0-3,8-11", "4-7,12-15")):
        files[f"sys/devices/system/node/node{node}/cpulist"] = cpus
        files[f"sys/devices/system/node/node{node}/meminfo"] = (
            f"Node {node} MemTotal: 16000000 kB\nNode {node} MemFree: 9000000 kB"
        )
    return write_tree(root, files)


def raspberry_pi(root: Path) -> Path:
    """Written from documentation, not recorded: a Raspberry Pi 5 with 8 GB: four cores of one kind; throttled for want of volts, now and before."""
    files = common(4, gigabytes=8) | {
        "proc/cpuinfo": arm_cpuinfo(
            ["0xd0b"] * 4, "asimd asimdhp asimddp", "\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
        ),
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        f"{PI5_FIRMWARE}/get_throttled": "50005",
        f"{THERMAL}/thermal_zone0/type": "cpu-thermal",
        f"{THERMAL}/thermal_zone0/temp": 83400,
        f"{THERMAL}/thermal_zone0/trip_point_0_temp": 110000,
        f"{THERMAL}/thermal_zone0/trip_point_0_type": "critical",
    }
    for cpu in range(4):
        files |= core(str(cpu), cpu_capacity=1024, cpufreq__cpuinfo_max_freq=2_400_000)
        files |= cache(cpu, 0, 1, "Data", "64K", str(cpu))
        files |= cache(cpu, 2, 2, "Unified", "512K", str(cpu))
        files |= cache(cpu, 3, 3, "Unified", "2048K", "0-3")
    return write_tree(
        root, files | policy(0, "0 1 2 3", "ondemand", (1_500_000, 1_500_000, 2_400_000, 2_400_000))
    )


def android_phone(root: Path) -> Path:
    """Written from documentation, not recorded: a phone with 4 small, 3 large and 1 largest core; sensors, battery and caches are hidden from apps."""
    files = common(8, gigabytes=8) | {
        "proc/cpuinfo": arm_cpuinfo(
            ["0xd05"] * 4 + ["0xd41"] * 3 + ["0xd44"],
            "asimd asimdhp asimddp",
            "\n\nHardware\t: Vendor SM8350\n",
        ),
        "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\nSwapTotal: 3000000 kB\nSwapFree: 2500000 kB",
        "proc/swaps": "Filename Type Size Used Priority\n/dev/block/zram0 partition 3000000 500000 0",
    }
    kinds = ((range(4), 325, 1_804_800), (range(4, 7), 871, 2_419_200), (range(7, 8), 1024, 2_841_600))
    for cpus, capacity, khz in kinds:
        for cpu in cpus:
            files |= core(str(cpu), cpu_capacity=capacity, cpufreq__cpuinfo_max_freq=khz)
    return write_tree(root, files)


def bare_virtual_machine(root: Path) -> Path:
    """Two CPUs, folders of sensors that are empty."""
    for folder in (POWER, THERMAL, f"{CPU}/cpufreq"):
        (root / folder).mkdir(parents=True)
    files = common(2) | {"proc/cpuinfo": x86_cpuinfo("Virtual CPU", 2, "avx2 fma hypervisor")}
    return write_tree(root, files | core("0") | core("1"))


def limited_container(root: Path) -> Path:
    """The desktop, in a container with 2.5 CPUs, 4 GB, and six of the CPUs."""
    amd_desktop(root)
    return write_tree(
        root,
        {
            "proc/self/status": "Cpus_allowed_list:\t0-3,8-9",
            "proc/self/cgroup": "0::/app.slice/app.scope",
            "sys/fs/cgroup/app.slice/app.scope/cpu.max": "max 100000",
            "sys/fs/cgroup/app.slice/cpu.max": "250000 100000",
            "sys/fs/cgroup/app.slice/memory.max": 4_000_000_000,
            "sys/fs/cgroup/app.slice/memory.current": 1_000_000_000,
            "sys/fs/cgroup/app.slice/memory.stat": "inactive_file 0\nactive_file 0",
        },
    )
