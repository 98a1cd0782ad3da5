# A unit file as { Unit.After = "…"; Service.Restart = "…"; … }, with a list where a directive is repeated.
lib: file:
let
  lines = lib.filter (line: line != "" && !lib.hasPrefix "#" line) (
    map lib.trim (lib.splitString "\n" (builtins.readFile file))
  );

  read =
    state: line:
    let
      header = builtins.match "\\[(.*)]" line;
      directive = builtins.match "([A-Za-z]+)=(.*)" line;
      name = lib.head directive;
      value = lib.last directive;
      before = state.unit.${state.section}.${name} or null;
    in
    if lib.hasSuffix "\\" line then
      throw "${toString file}: a directive is continued on the next line, which is not read here: ${line}"
    else if header != null then
      state // { section = lib.head header; }
    else if directive == null then
      throw "${toString file}: this is neither a section nor a directive: ${line}"
    else
      state
      // {
        unit = lib.recursiveUpdate state.unit {
          ${state.section}.${name} = if before == null then value else lib.toList before ++ [ value ];
        };
      };
in
(lib.foldl' read {
  section = null;
  unit = { };
} lines).unit
