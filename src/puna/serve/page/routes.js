// Routed experts to counts: which expert of which layer read how many tokens. Pure numbers, no elements.

/** Returns counts [layer][expert] of routes, which hold per token and MoE layer a list of experts.
 *
 * What another model left behind, in a conversation that was opened here, is counted as far as it fits.
 */
export function countRoutes(routes, nLayers, nExperts) {
  const counts = emptyCounts(nLayers, nExperts);
  for (const token of routes)
    token.forEach((experts, layer) => {
      for (const expert of experts) if (counts[layer]?.[expert] !== undefined) counts[layer][expert] += 1;
    });
  return counts;
}

/** Returns counts of nothing. */
export function emptyCounts(nLayers, nExperts) {
  return Array.from({ length: nLayers }, () => new Array(nExperts).fill(0));
}

/** Adds counts to counts. */
export function addCounts(sum, more) {
  sum.forEach((row, layer) => row.forEach((_, expert) => (row[expert] += more[layer]?.[expert] ?? 0)));
}

/** Returns counts as multiples of a fair share, per layer: 1 everywhere when all experts read alike. */
export function fairShares(counts) {
  return counts.map((row) => {
    const total = row.reduce((a, b) => a + b, 0);
    return row.map((n) => (total ? (n * row.length) / total : 0));
  });
}

/** Returns what a map says at a glance: { tokens, busiest: { layer, expert, share }, imbalance, evenness }.
 *
 * `imbalance` is the mean over layers of the busiest expert's share over a fair one; `evenness` the mean entropy over
 * that of a uniform choice, 1 when all experts read alike. Null where nothing was counted.
 */
export function summary(counts) {
  const shares = fairShares(counts);
  const used = shares.filter((row) => row.some(Boolean));
  if (!used.length) return null;
  let busiest = { layer: 0, expert: 0, share: 0 };
  shares.forEach((row, layer) =>
    row.forEach((share, expert) => {
      if (share > busiest.share) busiest = { layer, expert, share };
    }),
  );
  const entropy = (row) =>
    -row.reduce((sum, share) => sum + (share ? (share / row.length) * Math.log(share / row.length) : 0), 0);
  return {
    tokens: Math.max(...counts.map((row) => row.reduce((a, b) => a + b, 0))),
    busiest,
    imbalance: mean(used.map((row) => Math.max(...row))),
    evenness: mean(used.map((row) => (row.length > 1 ? entropy(row) / Math.log(row.length) : 1))),
  };
}

function mean(values) {
  return values.reduce((a, b) => a + b, 0) / values.length;
}
