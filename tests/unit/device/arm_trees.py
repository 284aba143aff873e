"""Phones and boards as trees of /proc and /sys. All are written from documentation; none was recorded on a device.

Sources: the kernel's Documentation/ABI/testing/sysfs-devices-system-cpu (cpu_capacity), admin-guide/pm/cpufreq.rst,
driver-api/thermal/sysfs-api.rst, accounting/psi.rst, hwmon/raspberrypi-hwmon.rst, admin-guide/blockdev/zram.rst,
drivers/staging/android/lowmemorykiller.c of Linux 4.9; AOSP's ProcessList.java for the levels that Android writes there;
Raspberry Pi documentation for get_throttled and the boards' frequencies.
"""

from __future__ import annotations

from pathlib import Path

from unit.device.trees import CPU, POWER, THERMAL, arm_cpuinfo, cache, common, core, policy, write_tree

KILLER = "sys/module/lowmemorykiller/parameters"

MEMINFO = """MemTotal: {total} kB
MemFree: 210000 kB
MemAvailable: {available} kB
SwapTotal: 3000000 kB
SwapFree: 1200000 kB"""


def open_phone(root: Path) -> Path:
    """Written from documentation, not recorded: a phone of three clusters whose system hides nothing (an older one, or root).

    4 Cortex-A55, 3 Cortex-A78, 1 Cortex-X1; hot, its large cores held back; 2.9 GB of 6 are available, zram is half full.
    """
    files = common(8) | {
        "proc/cpuinfo": arm_cpuinfo(["0xd05"] * 4 + ["0xd41"] * 3 + ["0xd44"], "asimd asimdhp asimddp"),
        "proc/meminfo": MEMINFO.format(total=5_700_000, available=2_900_000),
        "proc/swaps": "Filename Type Size Used Priority\n/dev/block/zram0 partition 3000000 1800000 32758",
        "proc/pressure/memory": "some avg10=14.25 avg60=6.10 avg300=2.00 total=991234\n"
        "full avg10=3.50 avg60=1.10 avg300=0.40 total=221234",
        "proc/self/oom_score_adj": 200,
        # 80,640 pages are 315 MiB: 184,320 KiB times 7/4.
        f"{KILLER}/minfree": "18432,23040,27648,32256,55296,80640",
        f"{KILLER}/adj": "0,100,200,250,900,950",
        f"{POWER}/battery/type": "Battery",
        f"{POWER}/battery/capacity": 41,
        f"{POWER}/battery/status": "Discharging",
        f"{POWER}/usb/type": "USB",
        f"{POWER}/usb/online": 0,
    }
    for number, (name, millidegrees) in enumerate(
        (("cpu-0-0-usr", 71_000), ("cpu-1-3-usr", 92_400), ("battery", 43_100), ("skin-therm", 46_000))
    ):
        files[f"{THERMAL}/thermal_zone{number}/type"] = name
        files[f"{THERMAL}/thermal_zone{number}/temp"] = millidegrees
    files[f"{THERMAL}/thermal_zone1/trip_point_0_type"] = "passive"
    files[f"{THERMAL}/thermal_zone1/trip_point_0_temp"] = 95_000
    for number, (name, state) in enumerate(
        (("cpufreq-cpu0", 0), ("cpufreq-cpu4", 3), ("panel0-backlight", 5))
    ):
        files[f"{THERMAL}/cooling_device{number}/type"] = name
        files[f"{THERMAL}/cooling_device{number}/cur_state"] = state
    kinds = ((range(4), 325, 1_804_800), (range(4, 7), 871, 2_419_200), (range(7, 8), 1024, 2_841_600))
    for cpus, capacity, khz in kinds:
        for cpu in cpus:
            files |= core(str(cpu), cpu_capacity=capacity, cpufreq__cpuinfo_max_freq=khz)
    files |= policy(0, "0 1 2 3", "schedutil", (1_500_000, 300_000, 1_804_800, 1_804_800))
    files |= policy(4, "4 5 6", "schedutil", (1_700_000, 710_400, 1_708_800, 2_419_200))
    files |= policy(7, "7", "schedutil", (2_841_600, 844_800, 2_841_600, 2_841_600))
    # related_cpus has all CPUs of a cluster, affected_cpus those that are on.
    files[f"{CPU}/cpufreq/policy4/affected_cpus"] = ""
    files[f"{CPU}/cpufreq/policy4/related_cpus"] = "4 5 6"
    return write_tree(root, files)


def two_big_six_little(root: Path) -> Path:
    """Written from documentation, not recorded: the cores of a cheaper phone, 6 Cortex-A55 and 2 Cortex-A76."""
    files = common(8) | {"proc/cpuinfo": arm_cpuinfo(["0xd05"] * 6 + ["0xd0b"] * 2, "asimd asimdhp asimddp")}
    for cpu in range(8):
        files |= core(str(cpu), cpu_capacity=1024 if cpu >= 6 else 385)
    return write_tree(root, files)


def raspberry_pi_4(root: Path, throttled: str = "0") -> Path:
    """Written from documentation, not recorded: a Raspberry Pi 4 with 2 GB and swap in zram and on the card."""
    files = common(4, gigabytes=2) | {
        "proc/cpuinfo": arm_cpuinfo(
            ["0xd08"] * 4, "asimd", "\n\nModel\t\t: Raspberry Pi 4 Model B Rev 1.5\n"
        ),
        "proc/meminfo": "MemTotal: 1894000 kB\nMemAvailable: 1500000 kB\nSwapTotal: 1894000 kB\nSwapFree: 1894000 kB",
        "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 1794000 0 100\n/var/swap file 100000 0 -2",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5\0",
        "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0",
        "sys/devices/platform/soc/soc:firmware/get_throttled": throttled,
        f"{THERMAL}/thermal_zone0/type": "cpu-thermal",
        f"{THERMAL}/thermal_zone0/temp": 61_300,
    }
    for cpu in range(4):
        files |= core(str(cpu), cpu_capacity=1024, cpufreq__cpuinfo_max_freq=1_800_000)
        files |= cache(cpu, 0, 1, "Data", "32K", str(cpu))
        files |= cache(cpu, 2, 2, "Unified", "1024K", "0-3")
    return write_tree(
        root, files | policy(0, "0 1 2 3", "ondemand", (600_000, 600_000, 1_800_000, 1_800_000))
    )


def raspberry_pi_5_on_another_kernel(root: Path) -> Path:
    """Written from documentation, not recorded: a Raspberry Pi 5 whose kernel has no get_throttled, but watches the volts."""
    return write_tree(
        root,
        common(4, gigabytes=8)
        | {
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "sys/class/hwmon/hwmon0/name": "cpu_thermal",
            "sys/class/hwmon/hwmon1/name": "rpi_volt",
            "sys/class/hwmon/hwmon1/in0_lcrit_alarm": 1,
            f"{THERMAL}/cooling_device0/type": "pwm-fan",
            f"{THERMAL}/cooling_device0/cur_state": 4,
        },
    )
