/** What one run of `pi train-predictor` is going to do, and whether it was done before. */
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { check } from "../formats/errors.ts";
import type { Cpu } from "../formats/hardware.ts";
import {
  parsePredictors,
  PREDICTOR_KINDS,
  type PredictorKind,
  type PredictorsMetadata,
} from "../formats/predictors.ts";
import { canonicalJson, checkSameInput, provenance, sameProvenance, type Provenance } from "../formats/provenance.ts";
import { sha256, sha256File } from "../io/hash.ts";
import { activationsPath, heldoutPath, readActivations, readHeldout } from "../io/profile-files.ts";
import { readSafetensors } from "../io/safetensors-file.ts";
import { isSparse } from "../model/config.ts";
import { readModelFile, type ModelFile } from "../model/model-file.ts";
import { hashTokens } from "../model/quality.ts";
import { layerTensor } from "../model/tensors.ts";
import { native } from "../native/index.ts";
import { FfnPrices, neuronRowsOf } from "./ffn-prices.ts";
import { machineOf, measureHere, type Machine } from "./machine.ts";
import { SAMPLE_MEMORY, type SampleMemory } from "./samples.ts";
import { PREDICTOR_DTYPES, type PredictorDType } from "./store.ts";
import { impossible } from "./training-free.ts";
import { HYPERPARAMETERS, type Hyperparameters } from "./train.ts";

export interface TrainPredictorOptions {
  /** Contribution-weighted recall that must hold on held-out text, mean over layers. Default 0.995. */
  recall?: number;
  /** Perplexity with predictors over perplexity dense, on held-out windows. Default 1.001. */
  maxPerplexityRatio?: number;
  /** Points of sparsity that false positives may take where `maxSize` allows, in [0, 1]. Default 0.08. */
  maxGap?: number;
  /** Bytes of all predictors over bytes of the model. Default 0.08. */
  maxSize?: number;
  /** Of the predictors; `auto` takes the kind that costs a token least time, layer by layer. Default auto. */
  kind?: PredictorKind | "auto";
  /** Type of the matrices of an mlp or svd; `auto` takes the one that costs a token least time, layer by layer. Default auto. */
  dtype?: PredictorDType | "auto";
  /** A hardware file: choose for the CPU described there. Default: this one, measured. */
  hardware?: string;
  /** Sampled rows of a layer to use, about. Default 32,768. */
  samples?: number;
  /**
   * Passes over the rows for the rank that is chosen; ranks are tried with a third of them. Default: as many as show it
   * some 240,000 rows, four at least.
   */
  epochs?: number;
  /** Share of a row's contribution whose holders are labelled active, and of an active neuron's weight that follows it. */
  labelShare?: number;
  contributionWeight?: number;
  seed?: number;
  threads?: number;
  /** Windows of text from elsewhere to measure on as well. */
  crossCorpus?: readonly Int32Array[];
  /** Train again even if the output is up to date, and forget an interrupted training. */
  force?: boolean;
  /** Seconds of training that an interruption may cost. Default 20. */
  saveSeconds?: number;
  /** What samples may take of memory. */
  memory?: SampleMemory;
}

/** Everything that decides the output. */
export interface Plan {
  dir: string;
  path: string;
  model: ModelFile;
  /** Whose time counts. */
  machine: Machine;
  recall: number;
  maxPerplexityRatio: number;
  maxGap: number;
  modelBytes: number;
  /** Of all predictors. */
  maxBytes: number;
  /** What a layer's predictor is chosen from, the simplest first. */
  kinds: readonly PredictorKind[];
  dtypes: readonly PredictorDType[];
  samples: number;
  epochs: number | null;
  hyperparameters: Hyperparameters;
  seed: number;
  threads: number;
  memory: SampleMemory;
  saveSeconds: number;
  heldout: readonly Int32Array[];
  crossCorpus: readonly Int32Array[] | undefined;
  /** What the predictors are made from; and the same with the text from elsewhere, which is only measured on. */
  trainedFrom: Provenance;
  origin: Provenance;
  /** Of a run that can go on with what an interrupted one left. */
  identity: string;
}

/** A plan for a CPU whose costs are known. */
export type PricedPlan = Plan & { cpu: Cpu; prices: FfnPrices };

/** `measured` may know what an interrupted run measured; it is asked where no file tells what the CPU costs. */
export async function priced(plan: Plan, measured: (measure: () => Promise<Cpu>) => Promise<Cpu>): Promise<PricedPlan> {
  const { machine, model, modelBytes } = plan;
  const cpu = machine.cpu ?? (await measured(() => measureHere(model, modelBytes)));
  return { ...plan, cpu, prices: pricesOf(plan, cpu) };
}

export const pricesOf = ({ model, modelBytes }: Plan, cpu: Cpu): FfnPrices =>
  new FfnPrices(model.config, neuronRowsOf(model), cpu, modelBytes);

export const predictorsPath = (dir: string): string => join(dir, "predictors.safetensors");

export async function makePlan(dir: string, options: TrainPredictorOptions): Promise<Plan> {
  const model = await readModelFile(dir);
  check(model.format === "model", "E_FORMAT", `${model.path}: expected a converted model, found an artifact`);
  check(isSparse(model.config.activation), "E_SMOOTH", () => {
    const { kind } = model.config.activation;
    return `${model.path}: activation ${kind} is smooth: no neuron is ever idle, so there is nothing to predict; expected a ReLU-family model`;
  });
  const activations = await readActivations(activationsPath(dir));
  checkSameInput("weights", activationsPath(dir), model.weights, activations.provenance.inputs["model"]);
  const { kind = "auto", dtype = "auto", maxSize = 0.08 } = options;
  const machine = await machineOf(options.hardware);
  const described = {
    kind,
    recall: options.recall ?? 0.995,
    maxPerplexityRatio: options.maxPerplexityRatio ?? 1.001,
    maxGap: options.maxGap ?? 0.08,
    maxSize,
    dtype,
    samples: options.samples ?? 32768,
    epochs: options.epochs ?? null,
    labelShare: options.labelShare ?? HYPERPARAMETERS.labelShare,
    contributionWeight: options.contributionWeight ?? HYPERPARAMETERS.contributionWeight,
    seed: options.seed ?? 0,
    machine: machine.machine,
  };
  const inputs = { model: model.weights, activations: await sha256File(activationsPath(dir)) };
  const trainedFrom = provenance("train-predictor", described, inputs);
  const { labelShare, contributionWeight } = described;
  const { crossCorpus } = options;
  const modelBytes = [...model.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  return {
    ...described,
    dir,
    path: predictorsPath(dir),
    model,
    machine,
    modelBytes,
    maxBytes: maxSize * modelBytes,
    kinds: kindsOf(kind, model),
    dtypes: dtype === "auto" ? PREDICTOR_DTYPES : [dtype],
    hyperparameters: { ...HYPERPARAMETERS, labelShare, contributionWeight },
    threads: options.threads ?? availableParallelism(),
    memory: options.memory ?? SAMPLE_MEMORY,
    saveSeconds: options.saveSeconds ?? 20,
    heldout: await readHeldoutWindows(dir, model.weights),
    crossCorpus,
    trainedFrom,
    origin: crossCorpus ? withEval(trainedFrom, crossCorpus) : trainedFrom,
    identity: sha256(canonicalJson({ trainedFrom, isa: native().isa().active })).slice(0, 16),
  };
}

const EVAL = "eval";

/** `origin` with the text from elsewhere as one more input, which decides what is reported, but not what is trained. */
function withEval(origin: Provenance, windows: readonly Int32Array[]): Provenance {
  return { ...origin, inputs: { ...origin.inputs, [EVAL]: hashTokens(windows) } };
}

function withoutEval(origin: Provenance): Provenance {
  const { [EVAL]: _, ...inputs } = origin.inputs;
  return { ...origin, inputs };
}

/** Throws `E_PREDICTOR` when the one kind that is asked for cannot be had. */
function kindsOf(kind: PredictorKind | "auto", { path, config, tensors }: ModelFile): PredictorKind[] {
  const gate = tensors.get(layerTensor(0, config.gated ? "ffn.gate.weight" : "ffn.up.weight"))!.dtype;
  const problem = (of: PredictorKind) => impossible(of, config, gate);
  if (kind === "auto") return PREDICTOR_KINDS.filter((of) => problem(of) === undefined);
  check(problem(kind) === undefined, "E_PREDICTOR", () => `${path}: no predictors of kind ${kind}: ${problem(kind)}`);
  return [kind];
}

async function readHeldoutWindows(dir: string, weights: string): Promise<Int32Array[]> {
  const path = heldoutPath(dir);
  const heldout = await readHeldout(path);
  checkSameInput("weights", path, weights, heldout.provenance.inputs?.["model"]);
  check(heldout.windows.length > 0, "E_SAMPLES", () => {
    return `${path}: expected held-out windows to measure quality on, found none; profile more text`;
  });
  return heldout.windows;
}

/**
 * The predictors in place, if this very run would train them; `complete` unless they were not yet measured on the text
 * from elsewhere that is asked for.
 */
export async function upToDate(plan: Plan): Promise<(PredictorsMetadata & { complete: boolean }) | undefined> {
  const file = await readSafetensors(plan.path).catch(() => undefined);
  if (!file) return undefined;
  try {
    const found = parsePredictors(file.metadata, plan.path, plan.model.config.nLayers);
    if (!found.cpu || !sameProvenance(withoutEval(found.provenance), plan.trainedFrom)) return undefined;
    const wanted = plan.origin.inputs[EVAL];
    return { ...found, complete: wanted === undefined || wanted === found.provenance.inputs[EVAL] };
  } catch {
    return undefined;
  }
}
