/**
 * The one error type a user sees. `message` is a single line that names the file or option, what was expected and what
 * was found; `code` is stable and tested; `exitCode` is the process's answer (1 failed, 2 wrong usage).
 */
export class PiError extends Error {
  readonly code: string;
  readonly exitCode: 1 | 2;

  constructor(code: string, message: string, exitCode: 1 | 2 = 1) {
    super(message);
    this.name = "PiError";
    this.code = code;
    this.exitCode = exitCode;
  }
}

/** Throws {@link PiError} `code` unless `condition` holds. */
export function check(condition: unknown, code: string, message: string | (() => string)): asserts condition {
  if (!condition) throw new PiError(code, typeof message === "string" ? message : message());
}
