// Builds the native addon into build/Release with CMake. `--if-possible`: where the tools are missing, say so and succeed.
// The part for NVIDIA GPUs is built where there are a driver and nvcc; PI_CUDA=1 builds it with nvcc alone, PI_CUDA=0 never.
// PI_CUDA_ARCHITECTURES=native compiles for this machine's GPU only, which takes a fraction of the time. PI_HIP=1 builds the
// part for AMD GPUs, with hipcc.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const optional = process.argv.includes("--if-possible");

/** True when `command` can be started and succeeds. */
const works = (command, ...args) => spawnSync(command, args, { stdio: "ignore" }).status === 0;

function missingTools() {
  const missing = [];
  if (!works("cmake", "--version")) missing.push("CMake (Debian package: cmake)");
  const compiler = process.env.CXX ?? "c++";
  if (!works(compiler, "--version"))
    missing.push(`a C++20 compiler, tried ${compiler} (Debian package: build-essential)`);
  else if (!works("make", "--version") && !works("ninja", "--version"))
    missing.push("make (Debian package: build-essential)");
  return missing;
}

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: ["ignore", "inherit", "inherit"] });
  if (error || status !== 0) {
    console.error(
      `pi: ${command} ${args.join(" ")} failed${error ? `: ${error.message}` : ` with exit code ${status}`}`,
    );
    process.exit(1);
  }
}

const missing = missingTools();
if (missing.length > 0) {
  console.error(
    `pi: the native addon cannot be built; missing: ${missing.join("; ")}. Install it, then: npm run build:native`,
  );
  process.exit(optional ? 0 : 1);
}

const generator =
  !existsSync(join(root, "build", "CMakeCache.txt")) && works("ninja", "--version") ? ["-G", "Ninja"] : [];
const { PI_CUDA, PI_CUDA_ARCHITECTURES, PI_HIP, PI_HIP_ARCHITECTURES } = process.env;
const gpu = [
  `-DPI_CUDA=${PI_CUDA ? (PI_CUDA === "0" ? "OFF" : "ON") : "AUTO"}`,
  `-DPI_HIP=${PI_HIP && PI_HIP !== "0" ? "ON" : "OFF"}`,
];
if (PI_CUDA_ARCHITECTURES) gpu.push(`-DPI_CUDA_ARCHITECTURES=${PI_CUDA_ARCHITECTURES}`);
if (PI_HIP_ARCHITECTURES) gpu.push(`-DPI_HIP_ARCHITECTURES=${PI_HIP_ARCHITECTURES}`);
run("cmake", ["-S", "native", "-B", "build", ...generator, "-DCMAKE_BUILD_TYPE=Release", ...gpu]);
run("cmake", ["--build", "build", "--parallel", String(availableParallelism())]);
