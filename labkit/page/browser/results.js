// The results explorer: means and intervals come from labkit/page/results_explorer.py, here chosen and drawn.

function makeView(data) {
  const { texts } = data;
  const DASHES = ["", "7 4", "2 3", "9 3 2 3"];

  function evaluate(state) {
    const block = data.blocks[state.block], wanted = data.axes[state.x];
    const at = Math.max(0, block.keys.includes(wanted) ? block.keys.indexOf(wanted) : block.keys.length - 1);
    const lines = new Map(), ticks = [];
    for (const point of block.points) {
      const measured = point.m[state.value];
      if (!measured) continue;
      const name = point.said.filter((_, index) => index !== at).join(", "), x = block.keys.length ? point.at[at] : "";
      if (!ticks.some(tick => tick.x === x)) ticks.push({ x, said: point.said[at] ?? "" });
      if (!lines.has(name)) lines.set(name, []);
      const [mean, low, high, seeds] = measured;
      lines.get(name).push({ x, mean, low, high, seeds, said: point.said.join(", ") });
    }
    const numeric = ticks.every(tick => typeof tick.x === "number" && tick.x > 0);
    if (numeric) ticks.sort((a, b) => a.x - b.x);
    const place = x => ticks.findIndex(tick => tick.x === x);
    const found = [...lines].map(([name, points]) => ({ name, points: points.sort((a, b) => place(a.x) - place(b.x)) }));
    const all = found.flatMap(line => line.points), sign = state.value === 1 ? -1 : 1;
    const best = all.reduce((least, point) => !least || sign * point.mean < sign * least.mean ? point : least, null);
    const reaches = point => point !== best && point.low !== null && best.low !== null && point.low <= best.high && point.high >= best.low;
    return { axis: block.keys[at] ?? "", ticks, numeric, lines: found, best, ties: best ? all.filter(reaches).length : 0 };
  }

  const short = number => Math.abs(number) >= 1000 ? grouped(Math.round(number)) : Number(number.toPrecision(4)).toString();

  function scale(result, top) {
    const ends = result.lines.flatMap(line => line.points.flatMap(point => [...point.seeds, point.mean]));
    const low = Math.min(...ends), high = Math.min(top ?? Infinity, Math.max(...ends));
    const span = high - low || Math.abs(high) || 1;
    return [low - 0.06 * span, high + 0.06 * span];
  }

  function mark(kind, x, y, colour) {
    const shapes = [`<circle cx="${x}" cy="${y}" r="4"/>`, `<rect x="${x - 4}" y="${y - 4}" width="8" height="8"/>`,
      `<path d="M${x} ${y - 5}L${x + 5} ${y + 4}H${x - 5}Z"/>`, `<path d="M${x} ${y - 6}L${x + 5} ${y}L${x} ${y + 6}L${x - 5} ${y}Z"/>`];
    return `<g fill="${colour}" stroke="none">${shapes[kind % shapes.length]}</g>`;
  }

  function drawLines(result, state) {
    const width = byId("chart").clientWidth || 600, left = 62, right = 18, top = 18, bottom = 236;
    const [low, high] = scale(result, state.zoom ? data.blocks[state.block].tops[state.value] : null);
    const logs = result.numeric ? result.ticks.map(tick => Math.log(tick.x)) : result.ticks.map((_, index) => index);
    const first = Math.min(...logs), last = Math.max(...logs), inner = width - left - right - 40;
    const place = index => left + 20 + (last > first ? inner * (logs[index] - first) / (last - first) : inner / 2);
    const y = value => bottom - (bottom - top) * (Math.min(value, high) - low) / (high - low);
    let body = "", cut = false;
    const step = niceStep(high - low, 6);
    for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) {
      body += `<path class="axis" d="M${left} ${y(tick)}H${width - right}"/><text class="soft" x="${left - 6}" y="${y(tick) + 4}" text-anchor="end">${short(tick)}</text>`;
    }
    let reached = -Infinity;
    result.ticks.forEach((tick, index) => {
      const said = typeof tick.x === "number" ? short(tick.x) : tick.said, half = textWidth(said) / 2;
      if (place(index) - half < reached + 4) return;
      reached = place(index) + half;
      body += `<text class="soft" x="${place(index)}" y="${bottom + 18}" text-anchor="middle">${escapeText(said)}</text>`;
    });
    body += `<text class="soft" x="${(left + width - right) / 2}" y="${bottom + 36}" text-anchor="middle">${escapeText(result.axis.replaceAll("_", " "))}</text>`;
    result.lines.forEach((line, turn) => {
      const colour = data.colours[turn % data.colours.length] === "#000000" ? "currentColor" : data.colours[turn % data.colours.length];
      const shift = 5 * (turn - (result.lines.length - 1) / 2);
      const at = line.points.map(point => [place(result.ticks.findIndex(tick => tick.x === point.x)) + shift, point]);
      body += `<g style="color:var(--ink)"><polyline points="${at.map(([x, point]) => `${x},${y(point.mean)}`).join(" ")}" fill="none" stroke="${colour}" stroke-width="1.6" stroke-dasharray="${DASHES[turn % 4]}"/>`;
      for (const [x, point] of at) {
        if (point.low !== null && point.low < high) body += `<path stroke="${colour}" d="M${x} ${y(Math.max(point.low, low))}V${y(point.high)}"/>`;
        for (const seed of point.seeds) if (seed <= high) body += `<circle cx="${x}" cy="${y(seed)}" r="1.8" fill="${colour}" opacity="0.6"/>`;
        if (point.mean > high) { cut = true; body += `<text x="${x}" y="${top - 4}" text-anchor="middle" style="fill:${colour}">▲</text>`; } else body += mark(turn, x, y(point.mean), colour);
      }
      body += "</g>";
    });
    let x = left, base = bottom + 58;
    for (const [turn, line] of result.lines.entries()) {
      if (!line.name) continue;
      const need = 34 + textWidth(line.name);
      if (x > left && x + need > width) { x = left; base += 18; }
      const colour = data.colours[turn % data.colours.length] === "#000000" ? "currentColor" : data.colours[turn % data.colours.length];
      body += `<g style="color:var(--ink)"><path d="M${x} ${base - 4}h20" stroke="${colour}" stroke-width="1.6" stroke-dasharray="${DASHES[turn % 4]}"/>${mark(turn, x + 10, base - 4, colour)}</g>`;
      body += `<text x="${x + 25}" y="${base}">${escapeText(line.name)}</text>`;
      x += need;
    }
    if (cut) body += `<text class="soft" x="${left}" y="${base += 18}">${escapeText(texts.above)}</text>`;
    const said = result.lines.map(line => `${line.name}: ${line.points.map(point => short(point.mean)).join(", ")}`).join("; ");
    drawChart(base + 12, `${data.values[state.value]}, ${result.axis}: ${said}`, body);
  }

  function draw(result, state) {
    const block = data.blocks[state.block], best = result.best;
    setUnused(block.keys.length < 2 ? ["x"] : []);
    const said = best && { mean: short(best.mean), low: best.low === null ? "" : short(best.low), high: best.high === null ? "" : short(best.high), n: best.seeds.length, at: best.said };
    const line = !best ? texts.none : fill(best.low === null ? texts.single : texts.verdict, said);
    byId("verdict").replaceChildren(element("strong", {}, line), result.ties ? ` ${fill(texts.noise, { k: result.ties })}` : "");
    if (!best) { drawChart(20, texts.none, ""); byId("details").textContent = ""; return; }
    drawLines(result, state);
    const cell = point => point.low === null ? short(point.mean) : `${short(point.mean)} (${short(point.low)} – ${short(point.high)})`;
    const sign = state.value === 1 ? -1 : 1;
    const rows = result.lines.flatMap(each => each.points).sort((a, b) => sign * (a.mean - b.mean)).slice(0, 6);
    byId("details").innerHTML = `<table><thead><tr><th></th><th>${escapeText(texts.mean)}</th><th>${escapeText(texts.seeds)}</th></tr></thead><tbody>` +
      rows.map(point => `<tr><th scope="row">${escapeText(point.said)}</th><td>${cell(point)}</td><td>${point.seeds.length}</td></tr>`).join("") +
      `</tbody></table><p class="note">${escapeText(fill(texts.note, block))}</p>`;
  }

  return { evaluate, draw };
}
