import { readFile } from "node:fs/promises";

/** CPU time that this process's ended children and itself have used, and all of the machine; in clock ticks. Linux only. */
interface CpuTimes {
  own: number;
  all: number;
}

async function readTimes(): Promise<CpuTimes> {
  const [machine, self] = await Promise.all([readFile("/proc/stat", "utf8"), readFile("/proc/self/stat", "utf8")]);
  // cpu user nice system idle iowait irq softirq steal …; proc(5)
  const [user, nice, system, , , irq, softirq, steal] = machine.split("\n")[0]!.trim().split(/ +/).slice(1).map(Number);
  // After the name in parentheses, state is field 3; utime, stime, cutime and cstime are 14 to 17.
  const own = self
    .slice(self.lastIndexOf(")") + 2)
    .split(" ")
    .slice(11, 15)
    .map(Number);
  return { own: sum(own), all: sum([user!, nice!, system!, irq!, softirq!, steal!]) };
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

/** Runs `work`, and tells beside its result how many cores' worth of time others used meanwhile, the hypervisor included. */
export async function watchOthers<T>(work: () => Promise<T>): Promise<{ result: T; otherCores: number }> {
  const [before, start] = [await readTimes(), performance.now()];
  const result = await work();
  const [after, seconds] = [await readTimes(), (performance.now() - start) / 1000];
  const ticks = after.all - before.all - (after.own - before.own);
  return { result, otherCores: Math.max(0, ticks / TICKS_PER_SECOND / seconds) };
}

/** USER_HZ, the same on every Linux that Node runs on. */
const TICKS_PER_SECOND = 100;
