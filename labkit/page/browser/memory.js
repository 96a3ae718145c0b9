// The memory explorer. The coefficients are tables that Python computed (labkit/page/memory_tables.py); here they are
// looked up, multiplied by tokens and rank, added, and compared.

function makeView(data) {
  const { tables, axes, texts } = data;
  const GIB = 2 ** 30;

  function lineAt([pieces, perRank, perRankAndToken], tokens, rank) {
    let k = pieces.length - 1;
    while (pieces[k][0] > tokens) k -= 1;
    return pieces[k][1] + pieces[k][2] * tokens + rank * (perRank + perRankAndToken * tokens);
  }

  /** Bytes of every moment by component, and the largest moment. */
  function predict(state) {
    const { model, kind } = state, adapted = data.adapted[kind];
    const targets = adapted ? state.targets : 0, rankIndex = adapted ? state.rank : 0;
    const tokens = axes.batch[state.batch] * axes.seq_len[state.seq_len], rank = axes.rank[rankIndex];
    const moments = tables.phases[kind].map(() => data.components.map(() => 0));
    const add = ([component, line, held]) => {
      const bytes = lineAt(tables.lines[line], tokens, rank);
      for (const moment of held) moments[moment][component] += bytes;
    };
    tables.steps[model][kind][targets][state.checkpointing].forEach(add);
    tables.losses[model][kind][state.loss].forEach(add);
    const states = tables.ranked[tables.states[model][kind][targets][state.optimizer]][rankIndex];
    moments.forEach((held, moment) => { if (tables.holds[kind][moment]) held[data.statesAt] += states; });
    const totals = moments.map(held => held.reduce((sum, bytes) => sum + bytes, 0));
    const top = totals.indexOf(Math.max(...totals));
    const phases = data.phases.map((_, phase) => Math.max(...totals.filter((_, moment) => tables.phases[kind][moment] === phase)));
    return { bytes: totals[top], components: moments[top], phase: tables.phases[kind][top], phases };
  }

  const room = state => (axes.card[state.card] - data.reserve) * GIB;
  const unused = state => data.adapted[state.kind] ? [] : ["rank", "targets"];

  /** The cheapest change, or pair of changes, that makes a setting fit; null if no pair does. */
  function cheapest(state) {
    const idle = unused(state);
    const single = data.moves.filter(move => state[move.axis] === move.start && !idle.includes(move.axis));
    const options = single.map(move => [move]);
    single.forEach((one, index) => single.slice(index + 1).forEach(two => { if (one.axis !== two.axis) options.push([one, two]); }));
    const cost = moves => moves.reduce((sum, move) => sum + move.cost, 0);
    options.sort((one, two) => cost(one) - cost(two));
    for (const moves of options) {
      const changed = { ...state };
      for (const move of moves) changed[move.axis] = move.to;
      const peak = predict(changed).bytes;
      if (peak <= room(state)) return { moves, cost: cost(moves), bytes: peak, state: changed };
    }
    return null;
  }

  function evaluate(state) {
    const found = predict(state), fits = found.bytes <= room(state);
    return { ...found, fits, spare: room(state) - found.bytes, change: fits ? null : cheapest(state) };
  }

  const gib = bytes => (bytes / GIB).toFixed(2);

  function drawVerdict(result, state) {
    const card = axes.card[state.card], template = result.fits ? texts.fits : texts.short;
    const line = element("strong", { class: result.fits ? "good" : "bad" },
      (result.fits ? "✓ " : "✗ ") + fill(template, { card, gib: gib(Math.abs(result.spare)) }));
    const parts = [line];
    if (result.change) {
      const what = result.change.moves.map(move => fill(texts.move, { what: move.what, price: move.price })).join(texts.and);
      const after = { what, peak: gib(result.change.bytes), spare: gib(room(state) - result.change.bytes) };
      parts.push(element("br", {}), fill(texts.cheapest, after));
    } else if (!result.fits) parts.push(element("br", {}), texts.none);
    byId("verdict").replaceChildren(...parts);
  }

  function drawBar(result, state) {
    const card = axes.card[state.card], width = byId("chart").clientWidth || 600, left = 4, right = 8;
    const most = Math.max(card, result.bytes / GIB) * 1.06, x = value => left + (width - left - right) * value / most;
    const top = 26, height = 34, axis = top + height + 8;
    let from = 0, body = fillDefinitions(data.colours);
    result.components.forEach((bytes, index) => {
      const to = from + bytes / GIB, pixels = x(to) - x(from), name = texts.components[index];
      if (bytes) body += `<rect class="edge" x="${x(from)}" y="${top}" width="${pixels}" height="${height}" fill="url(#fill-${index})"/>`;
      if (pixels > textWidth(name) + 8)
        body += `<text x="${(x(from) + x(to)) / 2}" y="${top - 9}" text-anchor="middle">${escapeText(name)}</text>`;
      from = to;
    });
    const step = niceStep(most, Math.max(3, Math.floor(width / 70)));
    body += `<path class="axis" d="M${x(0)} ${axis}H${x(most)}"/>`;
    for (let tick = 0; tick < most; tick += step)
      body += `<path class="axis" d="M${x(tick)} ${axis}v5"/><text class="soft" x="${x(tick)}" y="${axis + 18}" text-anchor="${tick ? "middle" : "start"}">${tick}</text>`;
    const usable = card - data.reserve;
    body += `<path class="mark dash" d="M${x(usable)} ${top - 6}V${axis}"/><path class="mark" d="M${x(card)} ${top - 6}V${axis}"/>`;
    const anchor = x(card) > width / 2 ? "end" : "start";
    body += `<text x="${x(card)}" y="${axis + 40}" text-anchor="${anchor}">${escapeText(fill(texts.line, { card, reserve: data.reserve }))}</text>`;
    drawChart(axis + 46, fill(texts.said, { peak: gib(result.bytes), card, phase: texts.phases[result.phase] }) + " " +
      texts.components.map((name, index) => `${name} ${gib(result.components[index])} GiB`).join(", "), body);
  }

  function drawDetails(result, state) {
    const row = (cells, tag = "td") => `<tr><th scope="row">${cells[0]}</th>` + cells.slice(1).map((c, i) => `<${tag}${i ? ' class="wide"' : ""}>${c}</${tag}>`).join("") + "</tr>";
    const rows = result.components.map((bytes, index) => row([swatch(index) + escapeText(texts.components[index]), gib(bytes), grouped(bytes)]));
    const foot = row([escapeText(fill(texts.peak, { phase: texts.phases[result.phase] })), gib(result.bytes), grouped(result.bytes)]);
    const phases = texts.phases.map((name, index) => `${name} ${gib(result.phases[index])}`).join(" · ");
    const idle = unused(state);
    const typed = Object.entries(data.codes).filter(([name]) => !idle.includes(name)).map(([name, codes]) => `${name}=${codes[state[name]]}`).join(", ");
    byId("details").innerHTML = `<table><thead><tr><th scope="col">${texts.component}</th><th scope="col">GiB</th><th scope="col" class="wide">${texts.bytes}</th></tr></thead>` +
      `<tbody>${rows.join("")}</tbody><tfoot>${foot}</tfoot></table><p class="note">${escapeText(fill(texts.phaseline, { phases }))}</p>` +
      `<p class="note">${texts.typed} <code id="typed">choice = dict(${escapeText(typed)})</code></p><p class="note">${escapeText(texts.fixed)}</p>`;
  }

  function draw(result, state) {
    setUnused(unused(state));
    drawVerdict(result, state);
    drawBar(result, state);
    drawDetails(result, state);
  }

  return { evaluate, draw, predict };
}
