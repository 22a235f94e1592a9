import type { StageContext } from "../io/progress.ts";
export async function resolveSource(source: string, _context: StageContext): Promise<string> {
  return source;
}
