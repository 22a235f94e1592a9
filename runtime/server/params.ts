import { checkNumber, type NumberRange, ParameterError, shown } from "../parameters.ts";

/** A request's JSON body, read one checked parameter at a time. null counts as absent, as in OpenAI's API. */
export class Params {
  readonly #body: Record<string, unknown>;

  /** @param param what `body` is called in messages */
  constructor(body: unknown, param = "body") {
    if (typeof body !== "object" || body === null || Array.isArray(body)) {
      throw new ParameterError(param, `expected an object, got ${shown(body)}`);
    }
    this.#body = body as Record<string, unknown>;
  }

  raw(name: string): unknown {
    return Object.hasOwn(this.#body, name) ? (this.#body[name] ?? undefined) : undefined;
  }

  number(name: string, range: NumberRange): number | undefined {
    const value = this.raw(name);
    return value === undefined ? undefined : checkNumber(name, value, range);
  }

  boolean(name: string): boolean {
    const value = this.raw(name) ?? false;
    if (typeof value !== "boolean") throw new ParameterError(name, `expected true or false, got ${shown(value)}`);
    return value;
  }

  string(name: string): string | undefined {
    const value = this.raw(name);
    return value === undefined ? undefined : checkString(name, value);
  }

  /** An array of 1 to `max` elements. */
  array(name: string, max: number): unknown[] {
    return checkArray(name, this.raw(name), max);
  }

  /** Refuses a parameter that would change the answer and is not supported; `neutral` are values that ask for nothing. */
  refuse(name: string, neutral: readonly unknown[] = []): void {
    const value = this.raw(name);
    if (value === undefined || neutral.includes(value)) return;
    throw new ParameterError(name, "not supported by this server", "E_UNSUPPORTED");
  }
}

export function checkString(param: string, value: unknown): string {
  if (typeof value === "string") return value;
  throw new ParameterError(param, `expected a string, got ${shown(value)}`);
}

export function checkArray(param: string, value: unknown, max: number): unknown[] {
  if (!Array.isArray(value)) throw new ParameterError(param, `expected an array, got ${shown(value)}`);
  if (value.length >= 1 && value.length <= max) return value;
  throw new ParameterError(param, `expected 1 to ${max} elements, got ${value.length}`);
}
