#!/bin/sh
# Every script that git knows and that starts with #!/bin/sh. OpenWrt's shell is ash, so: POSIX.
set -eu
cd "$(dirname "$0")/.."
scripts=$(git ls-files -co --exclude-standard | while read -r file; do
    [ -f "$file" ] || continue
    case $(head -c 64 "$file" | head -n 1 | tr -d '\0') in
        '#!/bin/sh'*) echo "$file" ;;
    esac
done)
# shellcheck disable=SC2086
shellcheck $scripts
echo "shellcheck: $(echo "$scripts" | wc -l) scripts"
