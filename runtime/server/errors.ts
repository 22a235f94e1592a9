import { PiError } from "../../formats/errors.ts";
import { ParameterError } from "../parameters.ts";

/** An error that a client is told, in OpenAI's terms. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  readonly headers: Record<string, string>;

  constructor(status: number, code: string, message: string, headers: Record<string, string> = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.headers = headers;
  }
}

export function shuttingDown(): ApiError {
  return new ApiError(503, "shutting_down", "the server is shutting down", { "retry-after": "1" });
}

/** The body of every refusal. */
export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string | null };
}

export interface ErrorReply {
  status: number;
  headers: Record<string, string>;
  body: ErrorBody;
}

/** pi's codes that are the client's doing, and what OpenAI calls them. */
const CLIENT_CODES: Record<string, string> = {
  E_PARAMETER: "invalid_value",
  E_UNSUPPORTED: "unsupported_parameter",
  E_CONTEXT: "context_length_exceeded",
  E_TOKEN: "invalid_token",
  E_NO_TEMPLATE: "no_chat_template",
  E_TEMPLATE: "chat_template_error",
  E_TEMPLATE_LIMIT: "chat_template_error",
};

/** What to answer to `error`. What is not the client's doing says nothing of the inside. */
export function errorReply(error: unknown): ErrorReply {
  if (error instanceof PiError && error.code === "E_CLOSED") return errorReply(shuttingDown());
  if (error instanceof ApiError) {
    return reply(error.status, error.message, null, error.code, error.headers);
  }
  if (error instanceof PiError && error.code in CLIENT_CODES) {
    const param = error instanceof ParameterError ? error.param : null;
    return reply(400, error.message, param, CLIENT_CODES[error.code]!);
  }
  const { statusCode, message } = error as { statusCode?: number; message: string }; // fastify's own
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) {
    return reply(statusCode, message, null, "invalid_request");
  }
  return reply(500, "internal error; the server's log has the details", null, "internal_error");
}

function reply(
  status: number,
  message: string,
  param: string | null,
  code: string,
  headers: Record<string, string> = {},
): ErrorReply {
  return { status, headers, body: { error: { message, type: errorType(status), param, code } } };
}

function errorType(status: number): string {
  if (status === 401) return "authentication_error";
  if (status === 403) return "permission_error";
  if (status === 429) return "rate_limit_error";
  return status >= 500 ? "server_error" : "invalid_request_error";
}
