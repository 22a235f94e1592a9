import { Fields } from "./fields.ts";

/** What placement needs to know of a machine. Bandwidths in bytes per second, memory in bytes, times in seconds. */
export interface Hardware {
  name: string;
  /** Read bandwidth of main memory over all threads. */
  cpu: { bandwidth: number };
  gpu: Gpu | null;
  /**
   * CPU to GPU: bandwidth of a copy, and T_sync, the fixed cost of handing one layer's work over and merging its
   * result.
   */
  link: { bandwidth: number; syncSeconds: number };
  /** Where the numbers come from. */
  source: string;
}

export interface Gpu {
  name: string;
  vramBytes: number;
  bandwidth: number;
  /** Taken by the driver's context and libraries before the first weight is loaded. */
  reservedBytes: number;
}

/** Parses a hardware file (`pi place --hardware`); throws `E_HARDWARE` naming file, member, expected and actual. */
export function parseHardware(text: string, file: string): Hardware {
  return readHardware(Fields.parse(text, file, "E_HARDWARE"));
}

/** A {@link Hardware} from the members of a JSON object; unknown members are ignored. */
export function readHardware(fields: Fields): Hardware {
  const gpu = fields.objectOrNull("gpu");
  const link = fields.object("link");
  return {
    name: fields.string("name"),
    cpu: { bandwidth: fields.object("cpu").number("bandwidth", 1) },
    gpu: gpu && {
      name: gpu.string("name"),
      vramBytes: gpu.integer("vramBytes"),
      bandwidth: gpu.number("bandwidth", 1),
      reservedBytes: gpu.integer("reservedBytes"),
    },
    link: { bandwidth: link.number("bandwidth", 1), syncSeconds: link.number("syncSeconds") },
    source: fields.string("source"),
  };
}
