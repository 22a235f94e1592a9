/** Asks for the next item while the caller works on this one: production and consumption overlap. */
export async function* prefetch<T>(source: AsyncIterable<T>): AsyncGenerator<T> {
  const items = source[Symbol.asyncIterator]();
  let next = items.next();
  try {
    for (;;) {
      const { value, done } = await next;
      if (done) return;
      next = items.next();
      next.catch(() => undefined); // seen when it is awaited, or not wanted any more
      yield value as T;
    }
  } finally {
    await next.catch(() => undefined);
    await items.return?.();
  }
}
