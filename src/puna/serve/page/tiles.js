// Which tiles a picture is cut into, as the server cuts it: a twin of puna/prompt/tiles.py, and tested to be one.
// Scales are compared as float32, which decides where two grids nearly tie.

/** Returns { rows, columns } for a picture of at most `maxTiles` tiles, the global one not counted. */
export function chooseGrid(width, height, tileSize, maxTiles) {
  const grids = [];
  for (let rows = 1; rows <= maxTiles; rows += 1)
    for (let columns = 1; columns <= Math.floor(maxTiles / rows); columns += 1)
      grids.push({
        rows,
        columns,
        scale: Math.fround(Math.min((columns * tileSize) / width, (rows * tileSize) / height)),
      });
  const enlarging = grids.filter(({ scale }) => scale >= 1).map(({ scale }) => scale);
  const best = enlarging.length ? Math.min(...enlarging) : Math.max(...grids.map(({ scale }) => scale));
  const candidates = grids.filter(({ scale }) => scale === best);
  const { rows, columns } = candidates.reduce((least, grid) => (area(grid) < area(least) ? grid : least));
  return { rows, columns };
}

/** Returns [width, height] of a picture inside its canvas, where it sits in the upper left corner. */
export function fittedSize(width, height, grid, tileSize) {
  const limitWidth = Math.min(Math.max(width, tileSize), grid.columns * tileSize);
  const limitHeight = Math.min(Math.max(height, tileSize), grid.rows * tileSize);
  const scaleWidth = limitWidth / width;
  const scaleHeight = limitHeight / height;
  if (scaleWidth < scaleHeight)
    return [limitWidth, Math.max(Math.min(Math.floor(height * scaleWidth), limitHeight), 1)];
  return [Math.max(Math.min(Math.floor(width * scaleHeight), limitWidth), 1), limitHeight];
}

/** Returns how many tokens of the prompt a picture takes, with those that mark its tiles. */
export function pictureTokens({ rows, columns }, tokensPerTile) {
  const local = rows * columns > 1 ? rows * columns * (tokensPerTile + 1) : 0;
  return 1 + local + 1 + tokensPerTile + 1;
}

function area({ rows, columns }) {
  return rows * columns;
}
