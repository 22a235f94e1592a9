import { PiError } from "../formats/errors.ts";

/** A request's or command line's value that was refused; `param` is the name its writer knows it by. */
export class ParameterError extends PiError {
  readonly param: string;

  constructor(param: string, message: string, code = "E_PARAMETER") {
    super(code, `${param}: ${message}`, 2);
    this.param = param;
  }
}

/** What numbers a parameter accepts, both ends included. */
export interface NumberRange {
  min: number;
  max: number;
  integer?: boolean;
}

/** `value` if it is a number within `range`; neither strings nor booleans count as numbers. */
export function checkNumber(param: string, value: unknown, range: NumberRange): number {
  const { min, max, integer = false } = range;
  if (typeof value === "number" && value >= min && value <= max && (!integer || Number.isInteger(value))) {
    return value + 0; // -0 becomes 0
  }
  const kind = integer ? "an integer" : "a number";
  throw new ParameterError(param, `expected ${kind} from ${min} to ${max}, got ${shown(value)}`);
}

/** A refused value for a message: a number or a short text as it is, what it is of anything larger or deeper. */
export function shown(value: unknown): string {
  if (typeof value === "string")
    return value.length > 40 ? `${JSON.stringify(value.slice(0, 40))}…` : JSON.stringify(value);
  if (typeof value !== "object" || value === null) return String(value);
  return Array.isArray(value) ? `an array of ${value.length}` : "an object";
}
