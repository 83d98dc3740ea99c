"""Reports: pages of runs, one offline file each. `gather` reads the folders, `page` writes the HTML."""
